"""Reproducible parameter initialization that leaves the caller's random state alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make parameters created inside the block a function of `seed` alone.

    Only the CPU generator is used and it is restored afterwards, so building a model never shifts the random
    numbers (drop path, shuffles) of the code around it. Build on CPU, then move to the device.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every accelerator, which fork_rng(devices=[]) does not
        # restore.
        torch.default_generator.manual_seed(seed)
        yield
