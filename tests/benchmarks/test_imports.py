"""Benchmarks import within functions, in processes of their own: every name that they import from this project is there."""

import ast
import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


def missing(source: str) -> list[str]:
    """Names that are imported from this project and do not exist."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in ("platform", "reidssl", "benchmarks"):
            continue
        for name in (alias.name for alias in node.names):
            if not hasattr(importlib.import_module(node.module), name):
                try:
                    importlib.import_module(f"{node.module}.{name}")
                except ModuleNotFoundError:
                    found.append(f"{node.module}.{name}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_imported_names_exist(file):
    assert missing(file.read_text(encoding="utf-8")) == []


def test_a_renamed_class_is_noticed():
    assert missing("def f():\n    from platform.engine.stream.order import Plan") == ["platform.engine.stream.order.Plan"]
