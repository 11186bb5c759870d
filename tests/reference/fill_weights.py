"""Weights and images of the stored reference outputs, generated from names and seeds instead of being stored.

`models.npz` and the head's output in `dino.npz` were computed by the method's released code with every parameter and
buffer drawn from a generator seeded by the CRC-32 of its (released) name.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent

_NORM_SCALES = ("norm.weight", "norm1.weight", "norm2.weight", "IN.weight", "BN.weight")


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one tensor: noise of 0.02, around 1 for scales, never below 1 for variances."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = 0.02 * torch.randn(shape, generator=generator)
    if name.endswith(_NORM_SCALES):
        return 1 + noise
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith(".weight")):
        return 1 + noise.abs()
    return noise


def released_state_dict(layout: str) -> dict[str, Tensor]:
    """A whole checkpoint in one of the layouts of `state_dicts.json`, filled by `fill`."""
    shapes = json.loads((FOLDER / "state_dicts.json").read_text())["models"][layout]["state_dict"]
    return {name: fill(name, tuple(shape)) for name, shape in shapes.items()}


def images(height: int = 256, width: int = 128, seed: int = 0) -> Tensor:
    """The input batch, float (2, 3, height, width). The `_local` outputs used seed 1."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def arrays(file: str) -> dict[str, Tensor]:
    """All arrays of a reference file as tensors."""
    with np.load(FOLDER / file) as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}
