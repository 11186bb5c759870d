"""Reproducible parameter initialization that does not change the caller's random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context in which newly created parameters depend on `seed` alone.

    Only the CPU generator is seeded, and its state is restored afterwards. Building a model therefore never shifts the random
    numbers (drop path, shuffles) of the surrounding code. Build on the CPU, then move to the device.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every accelerator, which fork_rng(devices=[]) does not
        # restore.
        torch.default_generator.manual_seed(seed)
        yield
