"""Losses compute in single precision at least, whatever the autocast region around them and the type of their inputs.

    with no_autocast(features):
        features = widened(features)

Half types have 8 or 11 bits: a distance as the difference of two large squares, or a sum over 65,536 classes, is noise in them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A region without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
