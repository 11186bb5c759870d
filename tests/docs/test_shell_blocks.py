"""Every line of every shell block of the guides is a command that somebody checks, or one of a short list of foreign programs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from reidssl.command import main as command  # noqa: F401  # `reidssl <program>` is installed from it
from tests.cluster.test_recipes import parse, ray_commands
from tests.docs.test_commands import GUIDES, ROOT

FOREIGN = {
    "docker",
    "kubectl",
    "aws",
    "gcloud",
    "prometheus",
    "promtool",
    "export",
    "source",
    "git",
    "yt-dlp",
    "while",
    "done",
    "helm",
}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def lines(guide: str) -> list[str]:
    """The commands of the shell blocks, with continued lines joined and without comments."""
    text = (ROOT / guide).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables before the command
        words.pop(0)
    return words


@pytest.mark.parametrize(("guide", "line"), [(guide, line) for guide in GUIDES for line in lines(guide)])
def test_a_line_of_a_shell_block(guide, line):
    program, *rest = words_of(line)
    name = Path(program).name
    if name.startswith("python"):
        assert rest[0] == "-m", line
        check_module(rest[1], rest[2:])
    elif name == "make":
        wanted = [word for word in rest if "=" not in word]
        assert set(wanted) <= TARGETS and all(
            word.split("=")[0] in ("EXTRA", "BENCH", "PYTHON") for word in set(rest) - set(wanted)
        )
    elif name == "pip":
        assert set(re.findall(r"\.\[([\w,]+)\]", line.replace(",", ","))) <= EXTRAS
    elif name == "ray":
        for call in ray_commands(line):
            if call[0] != "job":
                parse(call)
    elif name == "reidssl":
        assert (ROOT / "platform" / f"{rest[0]}.py").is_file()
    else:
        assert name in FOREIGN, f"{guide}: nobody checks {line!r}"


def check_module(module: str, rest: list[str]) -> None:
    if module in ("platform", "venv", "pip"):
        return
    if module == "pytest":
        files = [word.partition("::")[0] for word in rest if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files)
        return
    assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), module
    if module.startswith("benchmarks."):
        text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text() + (ROOT / "benchmarks" / "measure.py").read_text()
        for option in (word for word in rest if word.startswith("--")):
            assert f'"{option}"' in text or f"{option[2:]}=" in text, f"{module} has no {option}"


def test_there_are_commands_of_every_sort():
    """Otherwise the test above could pass because it finds nothing."""
    first = {Path(words_of(line)[0]).name for guide in GUIDES for line in lines(guide)}
    assert {"python", "make", "ray", "docker", "kubectl", "aws"} <= first
