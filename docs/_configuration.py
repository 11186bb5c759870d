"""MkDocs hook: the page `configuration.md`, which is what every program's --help prints."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
PAGE = "configuration.md"
INTRODUCTION = """# Configuration

Every setting of every program, with its value when nothing is said and its meaning: the output of `--help`, made when this site
was built. A setting is given as `key=value`, a group as `group=choice`; `--show-config` prints what results.
"""


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the page to the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """The page as Markdown. Raises subprocess.CalledProcessError if a program has no help."""
    names = programs()
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(help_of, names))
    return INTRODUCTION + "".join(
        f"\n## {name}\n\n````text\n{text.strip()}\n````\n" for name, text in zip(names, texts, strict=True)
    )


def programs() -> list[str]:
    """Names of the programs, in the order of `python -m platform`."""
    lines = _run("platform").splitlines()
    return [line.split()[2].removeprefix("platform.") for line in lines if line.startswith("  python -m platform.")]


def help_of(program: str) -> str:
    """What `python -m platform.<program> --help` prints."""
    return _run(f"platform.{program}", "--help")


def _run(module: str, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "110"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, check=True, text=True, capture_output=True
    ).stdout
