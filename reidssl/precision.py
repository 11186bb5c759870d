"""Losses compute in single precision at least, whatever the autocast region around them and the type of their inputs.

    with no_autocast(features):
        features = widened(features)

Half types have 8 or 11 bits: a distance as the difference of two large squares, or a sum over 65,536 classes, is noise in them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """A region in which products of float32 matrices keep all 24 bits, whatever the process has allowed them (TF32 keeps 11)."""
    allowed = torch.get_float32_matmul_precision()
    if device.type == "cpu" or allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


@contextmanager
def no_autocast(tensor: Tensor) -> Iterator[None]:
    """A region without autocast on the tensor's device, and with exact products. Backward passes run outside of it: gradients of
    products have the bits that the process allows."""
    with torch.autocast(tensor.device.type, enabled=False), exact_products(tensor.device):
        yield
