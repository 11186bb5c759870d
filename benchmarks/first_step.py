"""Seconds from the start of a command to its first training step, with a local Ray on this machine.

  python -m benchmarks.first_step              three starts
  python -m benchmarks.first_step --runs 1

Runs platform.pretrain on 256 tiny synthetic people. The lines that the program prints show when Ray has started and when the
first step is done. For comparison, it times the imports of torch, timm and DeepSpeed alone, which every training needs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

from benchmarks.measure import print_machine
from benchmarks.people import write_shards
from benchmarks.table import Row

TINY = [
    "model.image_size=[64,32]",
    "model.width=32",
    "model.depth=1",
    "model.heads=2",
    "model.stem_width=8",
    "augment.global_size=[64,32]",
    "augment.local_size=[32,16]",
    "augment.num_local=1",
    "objective.dino.out_dim=64",
    "objective.dino.hidden=32",
    "objective.dino.bottleneck=16",
    "stream.micro_batch=32",
    "stream.micro_batches_per_step=1",
    "length.samples=128",
    "tracking.every_steps=1",
]


def start(data: str, output: str, *overrides: str, variables: Mapping[str, str] | None = None) -> tuple[float, float]:
    """(seconds until Ray has started, seconds until the first step is done).

    variables: added to the environment of the command.
    """
    started, connected = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "platform.pretrain", f"data.uri={data}", f"output={output}", *TINY, *overrides]
    environment = os.environ | dict(variables or {})
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "  pretrain: " in line and not connected:
                connected = time.perf_counter() - started
            if "  step 1/" in line:
                first = time.perf_counter() - started
                break
        else:
            raise SystemExit("error: no first step:\n" + "".join(lines[-20:]))
        process.communicate()
    return connected, first


def imports() -> float:
    """Seconds that the imports of torch, timm and DeepSpeed take alone."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, timm, deepspeed"], check=True, capture_output=True)
    return time.perf_counter() - started


def medians(runs: int) -> tuple[float, float, float]:
    """Medians in seconds of several starts: until Ray has started, until the first step is done, and of the imports alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data", "[64,32]", 256)
        found = [start(f"{folder}/data", f"{folder}/run{number}") for number in range(runs)]
    connected, first = (statistics.median(times) for times in zip(*found, strict=True))
    return connected, first, min(imports() for _ in range(runs))


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: "tiny" takes one start, others three."""
    runs = 1 if size == "tiny" else 3
    connected, first, alone = medians(runs)
    note = f"median of {runs}; Ray has started after {connected:.1f} s, the imports alone take {alone:.1f} s"
    yield Row("command to first step, a tiny model", first, "s", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    print_machine()
    connected, first, alone = medians(runs)
    print(
        f"\nmedian of {runs} starts: Ray there after {connected:.1f} s, first step done after {first:.1f} s; the imports alone "
        f"take {alone:.1f} s"
    )


if __name__ == "__main__":
    main()
