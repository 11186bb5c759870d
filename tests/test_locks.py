"""Locks by purpose: what each holds, that all pin the same versions, and that everything is hashed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("run", "gpu", "dev", "dev-gpu")
TOOLS = {"pytest", "pytest-timeout", "ruff", "mypy", "moto", "mkdocs-material"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return {canonical(name): version for name, version in found}


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes_and_the_common_version(name):
    text = (ROOT / f"locks/{name}.lock").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(blocks) == len(pins(f"locks/{name}.lock")) > 60
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert "://" not in text and "/" not in re.sub(r"#.*", "", text)  # no host and no path of the machine that made it
    everything = pins("requirements.lock")
    other = {
        package: version for package, version in pins(f"locks/{name}.lock").items() if everything.get(package, version) != version
    }
    assert other == {}


def test_what_each_lock_is_for():
    run, gpu, dev, dev_gpu = (set(pins(f"locks/{name}.lock")) for name in NAMES)
    assert "faiss-cpu" in run & dev and "faiss-gpu" in gpu & dev_gpu
    assert not {"faiss-gpu"} & (run | dev) and not {"faiss-cpu"} & (gpu | dev_gpu)
    assert dev & dev_gpu >= TOOLS and not TOOLS & (run | gpu)
    assert run - {"faiss-cpu"} <= gpu and gpu <= dev_gpu


def test_torch_is_pinned_beside_the_locks():
    assert pins("locks/torch.txt") == {name: pins("requirements.lock")[name] for name in ("torch", "torchvision")}
    assert not any({"torch", "torchvision", "triton"} & set(pins(f"locks/{name}.lock")) for name in NAMES)


def test_what_is_asked_for_is_locked():
    """Every requirement of pyproject.toml and of its extras is in the lock of its purpose."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {"run": ["cpu"], "gpu": ["gpu"], "dev": ["cpu", "dev", "docs", "onnx", "tracking", "infomap"]}
    for lock, names in wanted.items():
        asked = {
            canonical(re.match(r"[A-Za-z0-9_.-]+", text)[0])
            for text in [*project["dependencies"], *(text for name in names for text in extras[name])]
        }
        assert asked - {"torch", "torchvision", "reidssl"} <= set(pins(f"locks/{lock}.lock")), lock
