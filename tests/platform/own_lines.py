"""Finds lines in a program's output that come from libraries and not from the program."""

import re

OWN = re.compile(r"\d\d:\d\d:\d\d  \S|error: |warning: |interrupted; run the same command again|stopped after a checkpoint")


def foreign_lines(output: str) -> list[str]:
    """Non-empty lines that no program of this project has written; the caller removes tables first."""
    return [line for line in output.splitlines() if line.strip() and not OWN.match(line)]
