"""Compiled loops over rows: numba kernels that release the GIL and are run on row blocks by plain threads.

Plain threads have three advantages over numba's parallel loops. The number of threads is an argument of each call, since workers
that share a machine must not each use every core. Kernels compile in a fraction of the time. Several Python threads may call a
kernel at once. Rows are independent, so results do not depend on the block size or the number of threads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import torch

Result = TypeVar("Result")


def kernel(function: Callable[..., Any], finite: bool = False) -> Any:
    """Decorator that compiles `function` at its first call. Machine code is cached on disk if a folder is writable.

    Sums may be reordered for vectorization, always in the same way. NaN and infinity are handled as usual.

    finite: the function never processes NaN, so that maxima can be vectorized too. Infinities are handled as usual.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"} | ({"nnan"} if finite else set())}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation without a home folder has no folder for the cache
        return numba.njit(**options)(function)


def threads_of(num_threads: int | None) -> int:
    """The number of threads to use; None: torch's number (`torch.set_num_threads`). Raises ValueError if it is below 1."""
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
        num_rows: number of rows.
        block: number of rows in a block, at least 1, else ValueError.
        num_threads: number of blocks processed at once, as in `threads_of`.
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
    """Context in which torch operations use one thread each, for code that runs several threads itself.

    With many small products in parallel, torch's own threads synchronize after each product. On a busy machine they would wait
    for each other longer than they compute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
