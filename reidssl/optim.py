"""Parameter groups and gradient clipping, as the released recipes have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


def parameter_groups(named_parameters: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups for pre-training: [decayed, not decayed].

    Not decayed: biases and everything with one dimension (norms). The class token and the position embedding
    have three and are decayed, as in the released code. Frozen parameters are left out; an empty group stays,
    so that groups keep their places. Only the first group follows a weight decay schedule. Call it on whole
    parameters: an engine that shards them flattens every shape to one dimension.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def sgd_groups(
    named_parameters: NamedParameters, lr: float, weight_decay: float, bias_lr_factor: float = 2.0
) -> list[dict[str, Any]]:
    """SGD groups for supervised fine-tuning: [weights, biases], the biases with `bias_lr_factor` times the
    rate.

    Both are decayed, as in the released code. "lr_factor" is there for schedules. Frozen parameters are left
    out.
    """
    weights: list[torch.nn.Parameter] = []
    biases: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (biases if name.split(".")[-1] == "bias" else weights).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay, "lr_factor": factor}
        for parameters, factor in ((weights, 1.0), (biases, bias_lr_factor))
    ]


@torch.no_grad()
def clip_per_tensor_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient of each parameter tensor to `max_norm` by itself (not the norm of them all).

    Returns:
        Scalar, the largest norm before clipping; 0 without any gradient. Nothing is read back from the
        device.
    """
    if max_norm <= 0:
        raise ValueError(f"max_norm must be positive: got {max_norm}")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack([gradient.float().norm() for gradient in gradients])
    for gradient, scale in zip(gradients, (max_norm / (norms + 1e-6)).clamp(max=1.0), strict=True):
        gradient.mul_(scale)
    return norms.max()
