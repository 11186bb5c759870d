"""Validation of the labels of losses."""

import torch
from torch import Tensor


def check_labels(labels: Tensor, num_classes: int, advice: str = "", wait: bool = False) -> None:
    """Raise ValueError unless `labels` are integers in [0, num_classes).

    Args:
        advice: text that is appended to the message.
        wait: also check values on a GPU, which waits for all work queued there. Otherwise only values on the CPU are checked. On
            a GPU, most kernels that index with wrong labels then stop the process.
    """
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers: got {labels.dtype}")
    read = wait or labels.device.type == "cpu"
    if read and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be in [0, {num_classes}): got {int(labels.min())} to {int(labels.max())}{advice}")
