"""The name under which Ray's dashboard shows this program: its jobs, Train runs and datasets."""

import re

LONGEST = 100
_name = ""


def name_of_run(program: str, folder: str) -> str:
    """`pretrain-vit-s` for the program "pretrain" and the folder or URI "s3://bucket/runs/vit-s"; usable as a file name."""
    last = re.sub(r"[^\w.-]+", "_", folder.rstrip("/").rpartition("/")[2])
    return f"{program}-{last}"[:LONGEST].rstrip("-")


def set_run_name(name: str) -> None:
    """Set the name of what this process does from now on."""
    global _name
    _name = name


def run_name() -> str:
    """The name that was set last in this process; "" if none was."""
    return _name
