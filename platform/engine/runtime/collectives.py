"""Broadcast values of rank 0 to every worker. Without a process group, the value itself is returned."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from platform.engine.runtime import device as devices


def broadcast_tensors(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors of rank 0 on every worker, on the CPU. Collective; the other ranks pass None."""
    layout = broadcast_object({name: (tuple(value.shape), value.dtype) for name, value in tensors.items()} if tensors else {})
    return {
        name: broadcast_tensor(tensors[name] if tensors else None, shape, dtype).cpu() for name, (shape, dtype) in layout.items()
    }


def broadcast_tensor(value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of rank 0 on the device of every worker. Collective; the other ranks pass None.

    Broadcasting one tensor at a time avoids that a worker holds all of them.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        assert value is not None
        return value
    if dist.get_rank() == 0:
        assert value is not None
        shared = value.to(devices.device()).contiguous()
    else:
        shared = torch.empty(shape, dtype=dtype, device=devices.device())
    dist.broadcast(shared, src=0)
    return shared


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, which must be picklable, on every worker. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
