"""The one place that knows about devices."""

import os

import torch


def device() -> torch.device:
    """The accelerator given to this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def backend() -> str:
    """Collective backend that fits the device."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def use_threads(count: int) -> None:
    """Ray sets OMP_NUM_THREADS=1 whatever was asked for: give torch `count` threads (0: leave it)."""
    if count > 0:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
