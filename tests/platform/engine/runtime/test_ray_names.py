"""Ray's private names: all that the code uses are listed, exist, and are missed in one line where they do not."""

import ast
import inspect
import tomllib
from pathlib import Path

import pytest
import ray

from platform.engine.errors import UserError
from platform.engine.runtime import ray_names
from platform.engine.runtime.ray_names import NAMES, TESTED, check_ray, missing_names
from platform.engine.train import elastic, trainer

ROOT = Path(__file__).resolve().parents[4]
USERS = [
    "platform/engine/runtime/ray_internals.py",
    "platform/engine/train/elastic.py",
    "platform/engine/train/trainer.py",
]


def test_the_tested_version_is_the_pinned_one():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,data,train,tune]=={TESTED}" in dependencies and ray.__version__ == TESTED


def test_every_private_import_is_listed():
    listed = {f"{module}.{name}".rsplit(".", part)[0] for module, names in NAMES.items() for name in names for part in (0, 1)}
    listed |= {f"{module}.{name.partition('.')[0]}" for module, names in NAMES.items() for name in names} | set(NAMES)
    for file in USERS:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and ("._" in node.module or "ray.core" in node.module):
                for alias in node.names:
                    assert f"{node.module}.{alias.name}" in listed, f"{file}: {node.module}.{alias.name}"


def test_every_overridden_method_is_listed():
    """A method of Ray that is renamed would not call the override any more."""
    listed = {name for names in NAMES.values() for name in names}
    extending = (elastic.__name__, trainer.__name__)
    for kind in [*vars(elastic).values(), *vars(trainer).values()]:
        if not (inspect.isclass(kind) and kind.__module__ in extending):
            continue
        for base in kind.__mro__[1:]:
            for name in vars(kind).keys() & vars(base).keys():
                if base.__module__.startswith("ray.train") and inspect.isfunction(vars(kind)[name]) and name != "__init__":
                    owners = [each.__name__ for each in kind.__mro__[1:]]
                    assert any(f"{owner}.{name}" in listed for owner in owners), f"{kind.__name__}.{name}"


def test_all_names_exist():
    assert missing_names(NAMES) == []


def test_another_ray_without_a_name_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.99.0")
    check_ray()  # another version that has all names
    gone = {"ray._private.worker": ("_global_node", "no_such_name"), "ray._private.no_such_module": ("x",)}
    monkeypatch.setattr(ray_names, "NAMES", NAMES | gone)
    with pytest.raises(UserError) as error:
        check_ray()
    assert str(error.value).startswith("Ray 2.99.0 has no ray._private.worker.no_such_name, ray._private.no_such_module, which")
    assert f"pip install 'ray[default,data,train,tune]=={TESTED}'" in str(error.value) and "\n" not in str(error.value)
