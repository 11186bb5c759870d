"""No list of files that stay behind leaves out code, neither Ray's package of the working folder nor the recipes' rsync."""

from pathlib import Path

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


def test_rsync_leaves_no_code_behind():
    """rsync applies a name to every level of the tree; a leading slash binds it to the top. Other recipes bring no code."""
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in (Path(ROOT) / "cluster").glob("*.yaml")}
    assert [name for name, recipe in recipes.items() if "." in recipe["file_mounts"].values()] == ["on-prem"]
    excludes = recipes["on-prem"]["rsync_exclude"]
    anywhere, at_the_top = ({one.strip("/") for one in excludes if one.startswith("/") == top} for top in (False, True))
    assert not anywhere & {part for path in CODE for part in path.parts}
    assert not at_the_top & {path.parts[0] for path in CODE} and "runs" in at_the_top
