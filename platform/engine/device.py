"""The one place that knows about devices."""

import os

import torch


def device() -> torch.device:
    """The accelerator given to this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def claim() -> None:
    """In a Ray Train worker: make the GPU that Train gave to it the current one."""
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def backend(gpus_per_worker: float) -> str:
    """Collective backend of workers with so many GPUs each."""
    return "nccl" if gpus_per_worker else "gloo"


def use_threads(count: int) -> None:
    """Ray sets OMP_NUM_THREADS=1 whatever was asked for: give torch `count` threads (0: leave it)."""
    if count > 0:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)
