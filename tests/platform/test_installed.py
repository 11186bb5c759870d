"""The programs installed from a wheel, outside the checkout: `reidssl <program>`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("RAY_")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited | environment, text=True, capture_output=True, timeout=240
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, as pip installs it. The dependencies are those of this environment."""
    built, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "checkout"  # a copy, because building writes into it
    for name in ("platform", "reidssl", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source]
    made = run(*command, cwd=built)
    (wheel,) = built.glob("reidssl-*.whl")
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def reidssl(installed: Path, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The console command: its entry point is `reidssl.command:main`."""
    (entry,) = (each for each in installed.glob("reidssl-*.dist-info/entry_points.txt"))
    assert "reidssl = reidssl.command:main" in entry.read_text()
    code = "import sys; from reidssl.command import main; sys.argv[0] = 'reidssl'; main()"
    return run(sys.executable, "-c", code, *arguments, cwd=cwd, PYTHONPATH=str(installed))


@pytest.mark.slow  # builds a wheel; runs two programs with Ray's imports
def test_the_command_is_the_programs_of_a_checkout(installed, tmp_path):
    listed = reidssl(installed, tmp_path)
    assert listed.returncode == 0 and "  reidssl pretrain " in listed.stdout and "python -m" not in listed.stdout
    shown = reidssl(installed, tmp_path, "pretrain", "--help")
    assert shown.returncode == 0 and "usage: reidssl pretrain" in shown.stdout and "luperson_vit_small_ics" in shown.stdout
    wrong = reidssl(installed, tmp_path, "pretrian")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "there is no program 'pretrian'; programs: cluster" in wrong.stderr
    missing = reidssl(installed, tmp_path, "pretrain", "data.uri=nowhere", "output=out")
    assert missing.returncode == 2 and "Make one with `reidssl ingest`" in missing.stderr


@pytest.mark.slow
def test_an_installed_program_works_with_ray(installed, tmp_path):
    """Ray's workers import the programs from the folder of the wheel, not from the checkout."""
    made = reidssl(installed, tmp_path, "ingest", "raw.kind=synthetic", "raw.synthetic.num_pretrain=20", "output=out")
    assert made.returncode == 0, made.stdout + made.stderr
    assert (tmp_path / "out/manifest.json").exists()
    where = reidssl(installed, tmp_path, "report", "run=out")
    assert where.returncode == 2 and str(ROOT) not in where.stderr
