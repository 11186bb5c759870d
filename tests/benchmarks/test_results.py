"""`make bench`: the table, its environment, and a part that fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.table import Row, environment, head, line, shown

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.results", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in text.splitlines() if row.startswith("| ")]


@pytest.mark.slow  # measures two parts
def test_the_file_holds_the_environment_and_both_sides(tmp_path):
    ended = run("--tiny", "--parts", "ranking", "--output", str(tmp_path / "new" / "some.md"))
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "new" / "some.md").read_text()
    facts = dict(re.findall(r"^- ([\w ]+): (.+)$", text, re.MULTILINE))
    assert facts["cores"] == str(len(os.sched_getaffinity(0))) and "torch " in facts["packages"] and "Python 3" in facts["system"]
    assert {"processor", "memory", "GPU", "commit", "taken"} <= set(facts) and "mean nothing" in text
    names, ours, theirs = cells(text)
    assert names == ["measured", "value", "unit", "note"]
    assert ours[0].endswith("this project") and float(ours[1]) > 0 and ours[2] == "s"
    assert "times the time" in theirs[3] and theirs[3].endswith("the same results")
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        line for line in ended.stdout.splitlines() if line.startswith("|")
    ]


def test_a_part_that_fails_leaves_its_error_and_the_others_run_on(monkeypatch, capsys):
    """Without the number of images of the size, the part fails in its own process."""
    found = results.measured(["no_such_part", "million"], "tiny")
    assert found[0].value is None and found[0].note.startswith("failed: ModuleNotFoundError") and "no_such_part" in found[0].note
    assert found[1].value and found[1].note.startswith("peak ")
    assert len(cells(capsys.readouterr().out)) == 2


def test_the_results_in_the_repository_are_whole():
    """A part of the table, or toy sizes, never replace it."""
    for given in (["--tiny"], ["--parts", "ranking"]):
        ended = run(*given)
        assert ended.returncode == 2 and "give another file with --output" in ended.stderr


@pytest.mark.slow  # starts a program and Ray several times
@pytest.mark.parametrize(
    ("part", "units"),
    [
        ("step_overhead", ["ms", "ms", "s"]),
        ("finetune_overhead", ["ms"] * 6),
        ("scoring", ["images/s"] * 10),
        ("input_stream", ["images/s"] * 4),
        ("first_step", ["s"]),
    ],
)
def test_the_parts_that_run_programs(part, units):
    found = results.rows_of_part(part, "tiny")
    assert [row.unit for row in found] == units and all(row.value > 0 for row in found)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (99.94, "99.9"), (2.345, "2.35"), (0.0999, "0.10"), (0.04567, "0.046"), (None, "-")]
)
def test_numbers_have_the_digits_that_matter(value, text):
    assert shown(value) == text


def test_a_row_cannot_break_the_table():
    row = line(Row("a|b", 1.0, "s", "c|d"))
    assert row.count("|") == head().splitlines()[0].count("|") == 5


def test_a_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (50.0, 0.0, 0.0))
    assert any("other work was running" in fact for fact in environment())
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not any("other work was running" in fact for fact in environment())
