"""Run the comparisons and write them with their environment to benchmarks/RESULTS.md: `make bench`.

  python -m benchmarks.results           quick sizes; 22 minutes on 2 idle cores
  python -m benchmarks.results --full    the published sizes: hours, and 13 GB of memory
  python -m benchmarks.results --tiny --output runs/tiny.md    toy sizes: tests the code, its figures mean nothing
  python -m benchmarks.results --parts ranking reranking --output runs/some.md

Each part runs in a process of its own, so that memory and compiled code of one part do not affect another. The table has the
form of `python -m benchmarks.gpu`. A part that fails leaves a row with its error, and the end of what it printed is on standard
error; the others run on, and the program ends with status 1. `python -m benchmarks.<part>` prints more about one part.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Comparison, keep_to_cpu
from benchmarks.table import Row, environment, head, line, rows_of, show

PARTS = (
    "pseudo_labels",
    "ranking",
    "reranking",
    "ivf",
    "million",
    "step_overhead",
    "finetune_overhead",
    "scoring",
    "input_stream",
    "first_step",
)
COMMANDS = {"quick": "make bench", "full": "make bench BENCH=--full", "tiny": "python -m benchmarks.results --tiny"}
RESULTS = Path(__file__).with_name("RESULTS.md")


def rows_of_part(part: str, size: str) -> list[Row]:
    """The rows of a part: those of its comparison, or of its function `rows`."""
    module = importlib.import_module(f"benchmarks.{part}")
    return list(_rows_of_comparison(module.COMPARISON, size) if hasattr(module, "COMPARISON") else module.rows(size))


def _rows_of_comparison(comparison: Comparison, size: str) -> Iterator[Row]:
    for compared in comparison.measured(size):
        yield from rows_of(compared)


def measured(parts: list[str], size: str) -> list[Row]:
    """The rows of all parts, printed as they come. A part that fails has one row without a value."""
    rows: list[Row] = []
    for part in parts:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            try:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _write_to, (log.name,)) as alone:
                    found = alone.submit(rows_of_part, part, size).result()
            except (Exception, SystemExit) as error:
                text = " ".join(str(error).split()) or "no message"
                found = [Row(part, None, "", f"failed: {type(error).__name__}: {text[:300]}")]
                print(log.read()[-4000:], file=sys.stderr)
        for row in found:
            show(*row)
        rows += found
    return rows


def _write_to(path: str) -> None:
    """Send what this process and its children print to a file: the lines of the programs are not part of the table."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def document(size: str, lines: list[str], rows: list[Row], minutes: float) -> str:
    """The Markdown of the results file. lines: of `environment`."""
    toy = "\nToy sizes: these figures test the code and mean nothing.\n" if size == "tiny" else ""
    about = "\n".join(f"- {text}" for text in [*lines, f"taken: {datetime.now(UTC):%Y-%m-%d}, in {minutes:.0f} minutes"])
    table = "\n".join([head(), *(line(row) for row in rows)])
    return (
        f"# Results\n\nWritten by `{COMMANDS[size]}`; `docs/benchmarks.md` describes both sides of each comparison.\n{toy}\n"
        f"{about}\n\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published sizes")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, default=None, help="file to write (default benchmarks/RESULTS.md)")
    arguments = parser.parse_args()
    keep_to_cpu()
    size = "full" if arguments.full else "tiny" if arguments.tiny else "quick"
    output = arguments.output or RESULTS
    if not arguments.output and (size == "tiny" or arguments.parts != list(PARTS)):
        parser.error("benchmarks/RESULTS.md is for all parts at real sizes: give another file with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    started, lines = time.monotonic(), environment()
    print("\n".join(f"- {text}" for text in lines) + f"\n\n{head()}")
    rows = measured(arguments.parts, size)
    output.write_text(document(size, lines, rows, (time.monotonic() - started) / 60), encoding="utf-8")
    print(f"\nwritten to {output}")
    if failed := [row.label for row in rows if row.value is None]:
        sys.exit(f"error: {len(failed)} of {len(arguments.parts)} parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
