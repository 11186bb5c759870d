"""The guides as a site: pages in the navigation, links with their files, and the help of all programs as reference."""

import importlib.util
import re
from pathlib import Path

import pytest

from platform.__main__ import programs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"configuration.md"}  # by docs/_configuration.py when the site is built


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [
        target
        for target in targets
        if target and "://" not in target and target not in MADE and not (page.parent / target).is_file()
    ]
    assert missing == []


def test_every_page_is_in_the_navigation():
    named = re.findall(r": ([\w-]+\.md)\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted({*(path.name for path in (ROOT / "docs").glob("*.md")), *MADE})


def test_the_modules_of_the_library_page_are_there():
    modules = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(modules) > 10
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


def test_the_configuration_reference_has_the_help_of_every_program(monkeypatch):
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "docs" / "_configuration.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert hook.programs() == list(programs())
    text = hook.help_of("report")
    assert text.startswith(programs()["report"]) and "storage.region" in text
    monkeypatch.setattr(hook, "help_of", "the help of {}".format)
    page = hook.page()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(programs())
    assert "````text\nthe help of tune\n````" in page
