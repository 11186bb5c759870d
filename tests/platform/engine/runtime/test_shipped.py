"""No list of files that stay behind leaves out code, neither Ray's package of the working folder nor the recipes' rsync."""

import subprocess
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import _get_excludes

from platform.engine.config.compose import ROOT
from platform.engine.runtime.ray_session import SHIPPED_EXCLUDES

CODE = [path.relative_to(ROOT) for top in ("platform", "reidssl", "configs") for path in (Path(ROOT) / top).rglob("*.[py]*")]
CODE = [path for path in CODE if path.suffix in (".py", ".yaml")]


def test_the_package_of_a_joined_cluster_has_all_code():
    assert Path("platform/engine/runs/run_folder.py") in CODE
    left_out = _get_excludes(Path(ROOT), SHIPPED_EXCLUDES)
    assert [path for path in CODE if any(left_out(Path(ROOT) / one) for one in (path, *path.parents[:-1]))] == []
    assert left_out(Path(ROOT) / "runs/demo/model.safetensors") and left_out(Path(ROOT) / ".venv/bin/python")


@pytest.mark.parametrize("recipe", ["aws", "gcp", "on-prem"])
def test_rsync_takes_all_code_and_no_results(recipe, tmp_path):
    excludes = yaml.safe_load((Path(ROOT) / "cluster" / f"{recipe}.yaml").read_text())["rsync_exclude"]
    for path in ("platform/engine/runs/run_folder.py", "platform/pretrain.py", "runs/demo/model", "build/lib/x.py", ".git/HEAD"):
        (tmp_path / "here" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / path).touch()
    command = ["rsync", "-a", *[f"--exclude={one}" for one in excludes], f"{tmp_path}/here/", f"{tmp_path}/there/"]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("rsync is not installed")
    found = sorted(str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file())
    assert found == ["platform/engine/runs/run_folder.py", "platform/pretrain.py"]
