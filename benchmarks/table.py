"""The table that `make bench` and `python -m benchmarks.gpu` print, as Markdown: `| measured | value | unit | note |`.

A row is printed as soon as it is measured. `environment` describes what a figure depends on: cores, processor, memory, load,
versions and commit.
"""

import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import platform
from benchmarks.measure import Compared, Measured, processor

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "ray", "numpy", "numba", "pyarrow", "faiss-cpu", "faiss-gpu", "scikit-learn", "timm")
WIDTHS = (62, 9, 8)


class Row(NamedTuple):
    """One figure."""

    label: str
    value: float | None
    """None: not measured; the note says why."""
    unit: str
    note: str = ""


def line(row: Row) -> str:
    """A row of the table. Its cells are padded, so that it is readable on a terminal, too."""
    label, value, unit = (text.replace("|", "/") for text in (row.label, shown(row.value), row.unit))
    return f"| {label:<{WIDTHS[0]}} | {value:>{WIDTHS[1]}} | {unit:<{WIDTHS[2]}} | {row.note.replace('|', '/')} |"


def head() -> str:
    """The two lines above the rows."""
    names = f"| {'measured':<{WIDTHS[0]}} | {'value':>{WIDTHS[1]}} | {'unit':<{WIDTHS[2]}} | note |"
    return f"{names}\n|{'-' * (WIDTHS[0] + 2)}|{'-' * (WIDTHS[1] + 1)}:|{'-' * (WIDTHS[2] + 2)}|---|"


def shown(value: float | None) -> str:
    """Three digits, and all digits before the point."""
    if value is None:
        return "-"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:,.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.0995
        else f"{value:.2g}"
    )


def show(label: str, value: float | None, unit: str, note: str = "") -> None:
    """Print a row."""
    print(line(Row(label, value, unit, note)), flush=True)


def rows_of(compared: Compared) -> Iterator[Row]:
    """Both sides of a comparison; the note of the other side has the ratios and whether both computed the same numbers."""
    ours, theirs = compared.ours, compared.theirs
    yield Row(f"{compared.title}, this project", ours.seconds, "s", memory_of(ours))
    same = "the same results" if ours.numbers == theirs.numbers else f"results {ours.numbers} and {theirs.numbers}"
    time, peak, grown = (
        shown(other / own)
        for own, other in zip(*((run.seconds, run.peak_mib, run.grown_mib) for run in (ours, theirs)), strict=True)
    )
    note = f"{memory_of(theirs)}; {time} times the time, {peak} times the memory ({grown} times the memory added); {same}"
    yield Row(f"{compared.title}, {compared.other}", theirs.seconds, "s", note)


def memory_of(run: Measured) -> str:
    return f"peak {run.peak_mib:,.0f} MiB, {run.grown_mib:,.0f} of it added"


def environment() -> list[str]:
    """Lines `name: value` about the machine and the versions."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    busy = " (other work was running: do not compare these figures)" if load > 0.25 * cores else ""
    return [
        f"cores: {cores}",
        f"processor: {processor()}",
        f"memory: {memory:.1f} GiB",
        f"GPU: {card}",
        f"load before the first measurement: {load:.1f}{busy}",
        f"system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"packages: {', '.join(f'{name} {found}' for name in PACKAGES if (found := _version(name)))}",
        f"commit: {_commit()}",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return ended.stdout.strip() if ended.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git here
        return "unknown"
    return (commit or "unknown") + (" with uncommitted changes" if changed else "")
