"""What an accelerator wants and a CPU does not: pinned copies and compiled functions.

Every function here does nothing on a CPU, so that callers have one code for both.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reidssl.choices import COMPILE_CHOICES


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device. To a GPU it goes through pinned memory, and the caller does not wait for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def compiles(device: torch.device) -> bool:
    """Whether torch.compile pays on this device: on GPUs from compute capability 7.0, with Triton. Not on a CPU, which would wait
    for a C++ compiler."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and importlib.util.find_spec("triton") is not None
    )


def wants_compiling(choice: str, device: torch.device) -> bool:
    """What `choice` (auto, on or off) means on this device."""
    if choice not in COMPILE_CHOICES:
        raise ValueError(f"compile must be one of {', '.join(COMPILE_CHOICES)}: got {choice!r}")
    return choice == "on" or (choice == "auto" and compiles(device))


_COMPILED: dict[Callable[..., Any], Any] = {}


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` compiled for a GPU, one graph for each set of shapes; itself elsewhere."""
    if not compiles(device):
        return function
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=False)
    found: Callable[..., Any] = _COMPILED[function]
    return found
