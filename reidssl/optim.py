"""Parameter groups, optimizers and gradient clipping of the released recipes, and detection of steps that are not finite."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reidssl.choices import OPTIMIZERS
from reidssl.precision import widened

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, momentum: float = 0.9, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """The optimizer `name` for parameter groups, for example from `parameter_groups` or `sgd_groups`.

    adamw: decoupled weight decay (arXiv 1711.05101), betas (momentum, beta2), eps 1e-8.
    sgd: v = momentum * v + g + decay * w;  w = w - lr * v.
    lars (arXiv 1708.03888, equation 6, as timm computes it): for each tensor of a group with weight decay
        v = momentum * v + r * (g + decay * w);  w = w - lr * v;  r = 0.001 |w| / (|g| + decay |w| + 1e-8)
    with r = 1 where w or g is 0. A group without decay (biases, norms) is plain SGD.

    Args:
        lr: learning rate of groups without an "lr" entry; loops with a schedule overwrite it.
        beta2: used by AdamW only.

    Raises ValueError for an unknown name.
    """
    if name == "adamw":
        # On a GPU, one kernel for all tensors. On a CPU, the plain loop, since published curves depend on its rounding.
        fused = {parameter.device.type for group in groups for parameter in group["params"]} == {"cuda"}
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, beta2), fused=fused or None)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if name == "lars":
        from timm.optim import Lars  # imported here, because importing timm's optimizers is slow

        return Lars(groups, lr=lr, momentum=momentum)
    raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}: got {name!r}")


def parameter_groups(
    named_parameters: NamedParameters, weight_decay: float, freezable: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """AdamW groups for pre-training: [with decay, without decay], and a third group, with decay, of freezable parameters if any.

    Weight decay is not applied to biases and to parameters with one dimension (norms). Class token and position embeddings have
    three dimensions and are decayed, as in the released code. Parameters without gradient are left out. The first two groups are
    kept even if empty, so that positions are fixed. Only groups with decay follow a weight decay schedule. Call this on unsharded
    parameters, since sharding engines flatten them to one dimension.

    freezable: suffixes of names. Their group has the entry "freezable", for loops that freeze it for a while (DINO's last layer).
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    frozen: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            if freezable and name.endswith(freezable):
                frozen.append(parameter)
            else:
                (plain if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return groups + ([{"params": frozen, "weight_decay": weight_decay, "freezable": True}] if frozen else [])


def sgd_groups(
    named_parameters: NamedParameters, lr: float, weight_decay: float, bias_lr_factor: float = 2.0
) -> list[dict[str, Any]]:
    """SGD groups for fine-tuning: [weights, biases], the biases with `bias_lr_factor` times the base rate.

    The released code uses 2 in supervised fine-tuning and 1 in Cluster Contrast, and decays both groups. The factor is kept as
    "base_factor" for schedules: in the released one the biases' rate is not a multiple of the weights' (`schedules.ReidCosine`).
    Frozen parameters are left out.
    """
    weights: list[torch.nn.Parameter] = []
    biases: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (biases if name.split(".")[-1] == "bias" else weights).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay, "base_factor": factor}
        for parameters, factor in ((weights, 1.0), (biases, bias_lr_factor))
    ]


def decay_by_layer(
    groups: list[dict[str, Any]], named_parameters: NamedParameters, depth: int, decay: float
) -> list[dict[str, Any]]:
    """Split groups by layer, for layer-wise learning rate decay (BEiT, arXiv 2106.08254, appendix).

    Parameters after the blocks (last norm, neck, classifier) keep their learning rate. The rate of block i is multiplied by
    decay ** (depth - i), and that of stem, class token, position and camera embeddings by decay ** (depth + 1). The factor is
    multiplied into "lr_factor", for schedules, and into "lr" if the group has one. Groups without parameters are left out. With
    decay 1, the groups are returned unchanged.

    Args:
        groups: parameter groups.
        named_parameters: all parameters in the groups with their names.
        depth: number of blocks of the backbone.
        decay: in (0, 1]; 0.65 to 0.9 are usual.

    Raises ValueError if decay is out of range.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1]: got {decay}")
    if decay == 1.0:
        return groups
    layers = {id(parameter): layer_of(name, depth) for name, parameter in named_parameters}
    split = []
    for group in groups:
        for layer in range(depth + 2):
            members = [parameter for parameter in group["params"] if layers[id(parameter)] == layer]
            factor = decay ** (depth + 1 - layer)
            scaled = {key: group[key] * factor for key in ("lr",) if key in group}
            if members:
                split.append(group | scaled | {"params": members, "lr_factor": group.get("lr_factor", 1.0) * factor})
    return split


_BEFORE_THE_BLOCKS = ("patch_embed", "cls_token", "pos_embed", "camera_embed")


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter: 0 before the blocks, i + 1 in block i, depth + 1 after the blocks.

    The block of a jigsaw branch stands beside the last block.
    """
    if name.startswith("jigsaw.block."):
        return depth
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if any(part in _BEFORE_THE_BLOCKS for part in name.split(".")) else depth + 1


@torch.no_grad()
def clip_per_tensor_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the gradient norm of each parameter tensor separately to `max_norm`, in place.

    Returns:
        Scalar, the largest norm before clipping; 0 if there are no gradients. Nothing is read back from the device.

    Raises ValueError if max_norm is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive: got {max_norm}")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm([widened(gradient) for gradient in gradients]))
    torch._foreach_mul_(gradients, list((max_norm / (norms + 1e-6)).clamp(max=1.0).unbind()))
    return norms.max()


def clip_global_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their total norm is at most `max_norm`. Infinity: only compute the norm.

    Returns:
        Scalar, the total norm before clipping; 0 if there are no gradients. Nothing is read back from the device.

    Raises ValueError if max_norm is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive: got {max_norm}")
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def broken_as_nan(loss: Tensor) -> Tensor:
    """The loss, multiplied by NaN if it is not finite, so that all of its gradients become NaN.

    The gradient norm, which all workers have after the reduction of gradients, then also shows whether the loss was finite. A
    finite loss and its gradients are unchanged bit for bit. Nothing is read back from the device.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def can_mask(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `masked` works with this optimizer: torch's fused AdamW, Adam and SGD."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@contextmanager
def masked(optimizer: torch.optim.Optimizer, norm: Tensor) -> Iterator[None]:
    """Context in which `optimizer.step()` changes no weights, moments or step counts if `norm` is not finite.

    The decision is made on the device, and nothing is read back. This is the mechanism with which torch's gradient scaler passes
    its flag to a fused optimizer.

    Args:
        optimizer: an optimizer for which `can_mask` is true, else ValueError.
        norm: scalar on the parameters' device, the norm of all gradients.
    """
    if not can_mask(optimizer):
        raise ValueError(f"only fused optimizers can pass over a step: got {type(optimizer).__name__} without fused=True")
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


class FirstBroken:
    """Records on the device the first step with a term that is not finite.

    broken = FirstBroken(device)
    broken.watch(step, output.terms)            each micro-batch; a few small kernels, nothing is read back
    found = broken.read()                       when the log is written and before a checkpoint; waits for the device

    """

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: Tensor | None = None
        self._names: list[str] = []

    @torch.no_grad()
    def watch(self, step: int, terms: dict[str, Tensor]) -> None:
        """Record `step` and the scalars `terms` if one of them is not finite and nothing has been recorded yet.

        `terms` must have the same names at every call.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        if self._values is None:
            self._names, self._values = list(terms), torch.zeros_like(values)
        first = ~torch.isfinite(values).all() & (self._step < 0)
        self._values = torch.where(first, values, self._values)
        self._step = torch.where(first, step, self._step)

    def read(self) -> tuple[int, dict[str, float]] | None:
        """(step, its terms) for the first step with a term that was not finite; None if all terms were finite."""
        step = int(self._step)
        if step < 0 or self._values is None:
            return None
        return step, dict(zip(self._names, self._values.tolist(), strict=True))
