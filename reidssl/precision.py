"""Tools for losses to compute in at least single precision, also inside autocast regions and for half-precision inputs.

    with no_autocast(features):
        features = widened(features)

Half-precision types have 8 or 11 significant bits. That is not enough for a distance computed as the difference of two large
squares, or for a sum over 65,536 classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 tensors converted to float32; tensors of other types unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Context in which products of float32 matrices have full precision (24 bits), even if the process allows TF32 (11 bits)."""
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
    """Context without autocast on the tensor's device and with `exact_products`.

    Backward passes usually run outside of the context, so gradients of products have the precision that the process allows.
    """
    with torch.autocast(tensor.device.type, enabled=False), exact_products(tensor.device):
        yield
