"""Access to the parameters and the optimizer state of a DeepSpeed engine of any ZeRO stage."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def is_partitioned(engine: Any) -> bool:
    """Whether the engine partitions its state: ZeRO stage 1, 2 or 3."""
    return hasattr(engine.optimizer, "fp16_groups") or hasattr(engine.optimizer, "bit16_groups")


def is_stage3(engine: Any) -> bool:
    """Whether the engine partitions its parameters: ZeRO stage 3."""
    return hasattr(engine.optimizer, "fp32_partitioned_groups_flat")


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer that DeepSpeed wraps."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


class Partition(NamedTuple):
    """An fp32 tensor that the wrapped torch optimizer steps on this worker."""

    flat: Tensor
    parameters: list[Tensor]
    """The parameters of the model that `flat` contains, in part or as a whole."""
    group: dict[str, Any]
    """The parameter group of the optimizer."""
    state: dict[str, Any]
    """The current optimizer state of `flat`; {} before the first step."""


def partitions(engine: Any) -> list[Partition]:
    """All tensors that the optimizer steps on this worker."""
    zero, groups, state = engine.optimizer, engine.optimizer.param_groups, torch_optimizer(engine).state
    if is_stage3(engine):
        held = [
            (flat, members, groups[zero.sub_group_to_group_id[index]])
            for index, (flat, members) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True))
        ]
    elif is_partitioned(engine):
        held = list(zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, groups, strict=True))
    else:
        held = [(parameter, [parameter], group) for group in groups for parameter in group["params"]]
    return [Partition(flat, list(members), group, state.get(flat, {})) for flat, members, group in held]


@contextlib.contextmanager
def full_parameter(parameter: Tensor) -> Iterator[Tensor]:
    """Context manager: the whole parameter on every worker. ZeRO-3 gathers it (collective); otherwise it is already whole."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.data
    else:
        yield parameter.data


def full_parameters(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """(name, whole parameter) pairs: a list, or with ZeRO-3 an iterator that gathers one parameter after the other."""
    named = list(model.named_parameters())
    if any(hasattr(parameter, "ds_id") for _, parameter in named):
        return named_full_parameters(model)
    return [(name, parameter.data) for name, parameter in named]


def named_full_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, whole parameter) pairs; each tensor is valid until the next pair is requested."""
    for name, parameter in model.named_parameters():
        with full_parameter(parameter) as full:
            yield name, full
