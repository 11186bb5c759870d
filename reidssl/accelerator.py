"""Pinned copies and compiled functions for accelerators.

On a CPU these functions change nothing, so that callers need only one code path.
"""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reidssl.choices import COMPILE_CHOICES


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device. Copies from the CPU to a GPU go through pinned memory and are asynchronous."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def compiles(device: torch.device) -> bool:
    """Whether torch.compile is worth its cost on this device: a GPU of compute capability 7.0 or higher, with what Triton needs.

    On a CPU it is not, since compilation would wait for a C++ compiler.
    """
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and importlib.util.find_spec("triton") is not None
        and can_build()
    )


def can_build() -> bool:
    """Whether this machine has a C compiler and Python's headers, with which Triton builds the launchers of its kernels."""
    has_compiler = bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
    return has_compiler and os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h"))


def wants_compiling(choice: str, device: torch.device) -> bool:
    """Whether to compile on this device, for `choice` auto, on or off. Raises ValueError for another choice."""
    if choice not in COMPILE_CHOICES:
        raise ValueError(f"compile must be one of {', '.join(COMPILE_CHOICES)}: got {choice!r}")
    return choice == "on" or (choice == "auto" and compiles(device))


_COMPILED: dict[Callable[..., Any], Any] = {}


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` compiled for a GPU, with one graph for each set of shapes. On other devices, `function` itself."""
    if not compiles(device):
        return function
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=False)
    found: Callable[..., Any] = _COMPILED[function]
    return found
