"""Time and memory of one function in its own process.

A side is a function `side(arguments) -> (work, check)`. The call imports, prepares and warms up (compiles) everything. `work()`
is timed. `check(result)` reduces its result to a few numbers that are compared between the sides.
Memory is the anonymous and shared memory of the process (Linux's RssAnon and RssShmem), sampled from outside: at the start of
`work`, and the peak while `work` runs. Pages of libraries that are mapped from their files (some 250 MiB for torch) are not
counted, because processes share them and the system drops them when memory is short. The peak with these pages is reported too.
"""

import argparse
import importlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import platform


@dataclass(frozen=True)
class Measured:
    """Result of one run of one side."""

    seconds: float
    start_mib: float
    """Memory at the start of the work: imports, compiled code and the input."""
    peak_mib: float
    """Peak memory while the work ran."""
    resident_mib: float
    """Peak memory including pages that are mapped from files (VmRSS)."""
    numbers: dict[str, Any]

    @property
    def grown_mib(self) -> float:
        return max(self.peak_mib - self.start_mib, 1.0)


def measure(module: str, side: str, arguments: Any, repeats: int = 1) -> Measured:
    """The fastest of `repeats` runs, each in a fresh process; peaks are the largest."""
    runs = [_once(module, side, arguments) for _ in range(repeats)]
    best = min(runs, key=lambda run: run.seconds)
    peak, resident = (max(each) for each in zip(*((run.peak_mib, run.resident_mib) for run in runs), strict=True))
    return Measured(best.seconds, best.start_mib, peak, resident, best.numbers)


def _once(module: str, side: str, arguments: Any) -> Measured:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # Not a daemon, because a daemon may not start processes (a DataLoader's workers). It ends when the pipe is closed.
    process = context.Process(target=_run, args=(module, side, arguments, there))
    process.start()
    there.close()
    try:
        here.recv()  # ready
        peak, resident = _memory_mib(process.pid)
        start = peak
        here.send("go")
        while not here.poll(0.01):
            peak, resident = map(max, (peak, resident), _memory_mib(process.pid))
        seconds, numbers = here.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{module}: side {side} died (exit code {process.exitcode}); out of memory?") from None
    process.join()
    return Measured(seconds, start, peak, resident, numbers)


def _run(module: str, side: str, arguments: Any, pipe: Connection) -> None:
    work, check = getattr(importlib.import_module(module), side)(arguments)
    pipe.send("ready")
    pipe.recv()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    pipe.send((seconds, check(result)))


def _memory_mib(pid: int | None) -> tuple[float, float]:
    """(anonymous and shared memory, whole resident set) of a process in MiB; zeros if it has ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own, shared, resident = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem", "VmRSS"))
        return own + shared, resident
    except (OSError, KeyError):  # the process has just ended
        return 0.0, 0.0


def keep_to_cpu() -> None:
    """Hide the GPUs of this machine, for comparisons whose other side computes on the CPU. Call it before torch looks for any."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def arguments_of(doc: str | None, **switches: str) -> argparse.Namespace:
    """Parse the command line that the benchmarks of CPUs share, and hide the GPUs.

    switches: names of further switches, with their help.
    """
    keep_to_cpu()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published sizes instead of quick ones")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side; the fastest counts (default 1)")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def print_machine() -> None:
    """Print the processor and the number of cores."""
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, {processor()}, Python {platform.python_version()}, load before {load:.1f}")


def processor() -> str:
    """Model name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


@dataclass(frozen=True)
class Compared:
    """The measured sides of a comparison at one size."""

    title: str
    ours: Measured
    theirs: Measured
    other: str
    """Name of the other side."""

    def print(self) -> None:
        """Print both sides, their ratios, and the numbers that they computed."""
        ours, theirs = self.ours, self.theirs
        print(f"\n{self.title}")
        print(f"  {'':<34}{'seconds':>9}{'peak MiB':>10}{'above its start':>17}{'with libraries':>16}")
        for label, run in (("this project", ours), (self.other, theirs)):
            print(f"  {label:<34}{run.seconds:>9.2f}{run.peak_mib:>10,.0f}{run.grown_mib:>17,.0f}{run.resident_mib:>16,.0f}")
        print(
            f"  ratio{'':<29}{theirs.seconds / ours.seconds:>8.1f}x{theirs.peak_mib / ours.peak_mib:>9.1f}x"
            f"{theirs.grown_mib / ours.grown_mib:>16.1f}x{theirs.resident_mib / ours.resident_mib:>15.1f}x"
        )
        for key in ours.numbers:
            print(f"  {key}: {ours.numbers[key]} against {theirs.numbers.get(key)}")


@dataclass(frozen=True)
class Comparison:
    """Two sides in one module, at several sizes."""

    module: str
    title: str
    """With {} for the name of the size."""
    sides: tuple[str, str]
    """Names of this project's side and of the other side in the module."""
    other: str
    """What the other side is."""
    sizes: dict[str, dict[str, Any]]
    """"tiny" (tests the code), "quick" and "full": name of a size -> arguments of the sides."""

    def measured(self, size: str, repeats: int = 1) -> Iterator[Compared]:
        """Measure both sides. size: a key of `sizes`."""
        for name, arguments in self.sizes[size].items():
            ours, theirs = (measure(self.module, side, arguments, repeats) for side in self.sides)
            yield Compared(self.title.format(name), ours, theirs, self.other)

    def main(self, doc: str | None) -> argparse.Namespace:
        """The program of the module: parse its command line, measure and print. Returns the parsed arguments."""
        arguments = arguments_of(doc)
        print_machine()
        for compared in self.measured("full" if arguments.full else "quick", arguments.repeats):
            compared.print()
        return arguments


def print_one(title: str, run: Measured) -> None:
    """Print this project's side alone, for a size at which the other side does not fit into memory."""
    print(
        f"\n{title}: {run.seconds:.2f} s, peak {run.peak_mib:,.0f} MiB, {run.grown_mib:,.0f} above its start, "
        f"{run.resident_mib:,.0f} with libraries"
    )
    for key, value in run.numbers.items():
        print(f"  {key}: {value}")
