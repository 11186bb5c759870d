"""Which lines of a program's output are not its own: remarks of the libraries below it."""

import re

OWN = re.compile(r"\d\d:\d\d:\d\d  \S|error: |warning: |interrupted; run the same command again|stopped after a checkpoint")


def foreign_lines(output: str) -> list[str]:
    """Non-empty lines that no program of ours has written (tables are for the caller to leave out)."""
    return [line for line in output.splitlines() if line.strip() and not OWN.match(line)]
