"""Compiled row loops: numba kernels that release the interpreter lock, run over row blocks by plain threads.

Plain threads rather than numba's own parallel loops: the number of threads is an argument of each call (workers
that share a machine must not all take every core), kernels compile in a fraction of the time, and several Python
threads may call at once. Rows are independent, so results do not depend on the block size or the number of threads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import torch

Result = TypeVar("Result")


def kernel(function: Callable[..., Any], finite: bool = False) -> Any:
    """Compile `function` at its first call; the machine code is kept on disk where a folder can be written.

    Sums may be reordered (vectorized), within one call always in the same way; NaN and infinity keep their meaning.

    finite: the function meets no NaN, so that maxima are vectorized too; infinities keep their meaning.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"} | ({"nnan"} if finite else set())}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation without a home folder has no place for the cache
        return numba.njit(**options)(function)


def threads_of(num_threads: int | None) -> int:
    """A number of threads; None: as many as torch uses (`torch.set_num_threads`)."""
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1: got {num_threads}")
    return num_threads


def over_blocks(
    function: Callable[[int, int], Result], num_rows: int, block: int, num_threads: int | None = None
) -> list[Result]:
    """[function(start, stop), ...] for consecutive row blocks, in order.

    Args:
        function: called with `0 <= start < stop <= num_rows`.
        num_threads: blocks worked on at once, as in `threads_of`.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 row: got {block}")
    num_threads = threads_of(num_threads)
    starts = range(0, num_rows, block)
    if num_threads == 1 or len(starts) < 2:
        return [function(start, min(start + block, num_rows)) for start in starts]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(lambda start: function(start, min(start + block, num_rows)), starts))


@contextmanager
def one_torch_thread_each() -> Iterator[None]:
    """Threads started inside run torch's operations by themselves.

    For many small products side by side: torch's own threads meet after each one, and on a busy machine wait for each other
    longer than they compute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
