"""Seeds and uniform random numbers that depend only on their purpose, not on when or where they are drawn.

The seed of a sample is a hash of (seed, epoch, key), and its random numbers are a function of this seed and a counter. The
augmentation of an image is therefore the same on every worker, in every batch and after every restart. The counter-based
generator is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). The i-th value is
a bijective mix of `state + (i + 1) * golden ratio`, so no value depends on the previous one.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHOICE_STREAM, GROUP_STREAM = 1 << 20, (1 << 20) + 1
"""Streams of `uniforms` for the choice of images and for groups of them. Those of the crops are counted from 0."""
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def mix(*values: int) -> int:
    """One stable seed in [0, 2**63) from one or more integers. It depends on their values, order and number."""
    if not values:
        raise ValueError("mix needs at least one integer to make a seed from: got none")
    text = ",".join(str(int(value)) for value in values)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seeds(seed: int, epoch: int, keys: Sequence[str]) -> NDArray[np.uint64]:
    """Seeds, uint64 (B,), of the samples with these keys in one epoch: a stable hash of (seed, epoch, key)."""
    if isinstance(keys, str):
        raise ValueError(f"keys must be a sequence of strings, one for each sample: got the single string {keys!r}")
    prefix = hashlib.blake2b(f"{int(seed)},{int(epoch)},".encode(), digest_size=8)
    seeds = np.empty(len(keys), dtype="<u8")
    for position, key in enumerate(keys):
        state = prefix.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        seeds[position] = int.from_bytes(state.digest(), "little")
    return seeds.astype(np.uint64, copy=False)


def uniforms(seeds: NDArray[np.uint64], count: int, stream: int = 0) -> NDArray[np.float64]:
    """`count` uniform random numbers for each seed: float64 (B, count) in [0, 1), with 53 random bits each.

    Row b depends only on `seeds[b]` and `stream`, and its first values do not depend on `count`. Different streams of one seed
    are independent. Use a separate stream for each use of a seed, such as each crop.

    Raises ValueError unless seeds are uint64 (B,) and count and stream are 0 or more.
    """
    seeds = np.asarray(seeds)
    if seeds.ndim != 1 or seeds.dtype != np.uint64:
        raise ValueError(f"seeds must be a one-dimensional uint64 array, as sample_seeds gives: got {seeds.dtype} {seeds.shape}")
    if count < 0 or stream < 0:
        raise ValueError(f"count and stream must not be negative: got count {count}, stream {stream}")
    # Unsigned arithmetic must wrap around here. NumPy arrays do this silently, but scalars would give a warning.
    state = _scramble(seeds ^ _scramble(np.array([stream], dtype=np.uint64) * GOLDEN_RATIO + GOLDEN_RATIO))
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN_RATIO
    bits = _scramble(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, a bijection of the 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST_FACTOR
    values = (values ^ (values >> np.uint64(27))) * _SECOND_FACTOR
    return values ^ (values >> np.uint64(31))
