"""What losses ask of their labels."""

import torch
from torch import Tensor


def check_labels(labels: Tensor, num_classes: int, advice: str = "", wait: bool = False) -> None:
    """Raise ValueError unless `labels` are integers in [0, num_classes).

    Args:
        advice: what to do about it, after the message.
        wait: read the values on a GPU too, which waits for all that is queued there. Otherwise only those on the CPU are read,
            and on a GPU most kernels that index with them stop the process.
    """
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers: got {labels.dtype}")
    read = wait or labels.device.type == "cpu"
    if read and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}): got {int(labels.min())} to {int(labels.max())}{advice}")
