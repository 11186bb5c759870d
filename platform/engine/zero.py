"""DeepSpeed: build the engine, and turn its partitioned state into plain tensors and back.

A plain ZeRO checkpoint can only be loaded by as many workers as wrote it. The payload here holds full fp32 parameters
and per-parameter optimizer moments by name, so any number of workers and any ZeRO stage can continue from it, and so can
ordinary PyTorch.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from platform.engine.collectives import broadcast_object, broadcast_tensor, broadcast_tensors
from platform.engine.errors import UserError
from reidssl.optim import clip_per_tensor_


@dataclass(kw_only=True)
class DeepSpeedConfig:
    """How the optimiser's state is partitioned and in which precision the model computes."""

    zero_stage: int = 1
    """0: replicated; 1: optimizer states partitioned; 2: gradients too; 3: parameters too."""
    precision: str = "fp32"
    """fp32, or bf16: the student computes in bf16 by autocast, while weights, moments, norms and the teacher stay fp32."""
    clip: float = 3.0
    """Largest gradient norm; 0 switches clipping off."""
    clip_per_tensor: bool = False
    """Clip every parameter tensor on its own, as the released pre-training does; only ZeRO stage 0."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3: got {self.zero_stage}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16: got '{self.precision}'")
        if self.clip < 0:
            raise ValueError(f"clip must be 0 (off) or positive: got {self.clip}")
        if self.clip_per_tensor and self.zero_stage != 0:
            raise ValueError("clip_per_tensor needs zero_stage=0, where every worker holds whole gradients; "
                             f"got zero_stage={self.zero_stage}. Use zero_stage=0 or clip_per_tensor=false")


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: DeepSpeedConfig, *,
                 micro_batch: int, accumulation: int) -> Any:
    """DeepSpeed engine around `model`; each of `accumulation` backward passes counts 1 / accumulation."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # gloo does the communication on CPU; DeepSpeed's shared-memory kernels would be compiled here on first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {
        "train_batch_size": micro_batch * accumulation * dist.get_world_size(),
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": config.zero_stage, "stage3_param_persistence_threshold": 1000},
        # Not DeepSpeed's "bf16": it casts the weights of batch norms and not their statistics, which then do not fit.
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "gradient_clipping": 0.0 if config.clip_per_tensor else config.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


@contextlib.contextmanager
def full_parameter(parameter: Tensor) -> Iterator[Tensor]:
    """The whole parameter on every worker, one at a time (ZeRO-3 gathers it; else it is already there)."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.data
    else:
        yield parameter.data


def named_full_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, whole parameter) pairs; each tensor is valid until the next one is asked for."""
    for name, parameter in model.named_parameters():
        with full_parameter(parameter) as full:
            yield name, full


def consolidate(engine: Any) -> dict[str, Any]:
    """Collective: every worker calls it. Full fp32 parameters, buffers and moments by name; empty except on rank 0."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    first = dist.get_rank() == 0
    partitioned = _is_partitioned(engine)
    if partitioned:
        _link_optimizer_state(engine)
    steps, moments = _optimizer_layout(engine)
    parameters: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {name: {} for name in moments}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            with full_parameter(parameter) as full:
                if first:
                    parameters[name] = _host_copy(full)
            continue
        value = safe_get_full_fp32_param(parameter) if partitioned else parameter.data
        if first:
            parameters[name] = _host_copy(value)
        for moment in moments:
            if partitioned:
                value = safe_get_full_optimizer_state(parameter, moment)
            else:
                value = engine.optimizer.state[parameter].get(moment)
            if first and value is not None:
                optimizer[moment][name] = _host_copy(value)
    if not first:
        return {}
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
    return {"parameters": parameters, "buffers": buffers, "moments": optimizer, "optimizer_steps": steps}


def restore(engine: Any, payload: dict[str, Any] | None) -> None:
    """Collective: put a payload of `consolidate` into an engine of any ZeRO stage and number of workers.

    payload: rank 0's counts; it goes to the others tensor by tensor, so that only rank 0 ever holds all of it.
    Raises UserError, on every worker, listing the parameters that differ in name or shape.
    """
    payload = payload if dist.get_rank() == 0 else None
    layout = broadcast_object(payload and {
        "shapes": {name: tuple(value.shape) for name, value in payload["parameters"].items()},
        "moments": {moment: list(values) for moment, values in payload["moments"].items()},
        "optimizer_steps": payload["optimizer_steps"]})
    _check_fits(engine, layout["shapes"])
    steps = layout["optimizer_steps"]
    if _is_partitioned(engine):
        _create_optimizer_state(engine, list(layout["moments"]), steps)
        _link_optimizer_state(engine)

    def shared(group: str, name: str, shape: tuple[int, ...]) -> Tensor:
        values = payload and (payload["parameters"] if not group else payload["moments"][group])
        return broadcast_tensor(values[name] if values else None, shape, torch.float32)

    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            shape = layout["shapes"][name]
            moments = {moment: shared(moment, name, shape) for moment, names in layout["moments"].items() if name in names}
            _restore_parameter(engine, parameter, shared("", name, shape), moments, steps.get(name))
        if hasattr(engine.optimizer, "update_lp_params") and not _is_stage3(engine):
            engine.optimizer.update_lp_params()
        buffers = broadcast_tensors(payload and payload["buffers"])
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(buffers[name])


def set_schedules(engine: Any, learning_rate: float, weight_decay: float | None = None, resting: bool = False) -> None:
    """Hand-set hyperparameters of this step; only groups that were made with a weight decay follow it.

    resting: groups with "may_rest" are held: `step` neither moves nor decays nor counts them.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        if weight_decay is not None and group.setdefault("decays", group["weight_decay"] > 0):
            group["weight_decay"] = weight_decay  # may pass through 0 and come back
        if "may_rest" in group:
            group["rests"] = resting
            if resting:
                group["lr"] = group["weight_decay"] = 0.0


def step(engine: Any, config: DeepSpeedConfig) -> None:
    """After every backward pass; updates the weights after the last one of a step, clipped as configured."""
    last = engine.is_gradient_accumulation_boundary()
    if last and config.clip_per_tensor and config.clip > 0:
        clip_per_tensor_(engine.module.parameters(), config.clip)
    engine.step()
    if last:
        for part in _partitions(engine):
            if part.group.get("rests") and "step" in part.state:
                # Adam's moments stayed zero; a count that had run on would make its first real steps several times too long.
                part.state["step"].zero_()


def _is_partitioned(engine: Any) -> bool:
    return hasattr(engine.optimizer, "fp16_groups") or hasattr(engine.optimizer, "bit16_groups")


def _is_stage3(engine: Any) -> bool:
    return hasattr(engine.optimizer, "fp32_partitioned_groups_flat")


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


class _Partition(NamedTuple):
    """An fp32 tensor that the wrapped torch optimizer steps on this worker."""

    flat: Tensor
    parameters: list[Tensor]
    """The model's parameters that it holds a part of, or the whole."""
    group: dict[str, Any]
    state: dict[str, Any]
    """The optimizer's, as it is now."""


def _partitions(engine: Any) -> list[_Partition]:
    zero, groups, state = engine.optimizer, engine.optimizer.param_groups, _torch_optimizer(engine).state
    if _is_stage3(engine):
        held = [(flat, members, groups[zero.sub_group_to_group_id[index]]) for index, (flat, members) in
                enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True))]
    elif _is_partitioned(engine):
        held = list(zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, groups, strict=True))
    else:
        held = [(parameter, [parameter], group) for group in groups for parameter in group["params"]]
    return [_Partition(flat, list(members), group, state.get(flat, {})) for flat, members, group in held]


def _optimizer_layout(engine: Any) -> tuple[dict[str, float], list[str]]:
    """(optimiser steps taken by each parameter, where the optimiser counts them; names of the per-element moments)."""
    partitions, names = _partitions(engine), {id(value): name for name, value in engine.module.named_parameters()}
    moments = sorted({key for part in partitions for key, value in part.state.items()
                      if isinstance(value, Tensor) and value.dim() > 0})
    steps = {names[id(parameter)]: float(part.state["step"]) for part in partitions if "step" in part.state
             for parameter in part.parameters}
    return steps, moments


def _link_optimizer_state(engine: Any) -> None:
    # DeepSpeed links the optimizer state to parameters after the first group's step only; with several groups the
    # others stay empty until it is done again.
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _create_optimizer_state(engine: Any, moments: Iterable[str], steps: dict[str, float]) -> None:
    """A fresh engine has no optimizer state; make it before filling it."""
    names = {id(value): name for name, value in engine.module.named_parameters()}
    for part in _partitions(engine):
        state = _torch_optimizer(engine).state[part.flat]
        for moment in moments:
            state[moment] = torch.zeros_like(part.flat, dtype=torch.float32)
        if part.parameters and names[id(part.parameters[0])] in steps:  # those of one partition move together
            state["step"] = torch.tensor(steps[names[id(part.parameters[0])]])


def _restore_parameter(engine: Any, parameter: Tensor, value: Tensor, moments: dict[str, Tensor],
                       step: float | None) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if _is_stage3(engine):
        with _gathered_for_writing(parameter):
            parameter.data.copy_(value) if parameter.data.shape == value.shape else None
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, _own_slice(value, parameter))
            for moment, state in moments.items():
                safe_set_local_optimizer_state(parameter, _own_slice(state, parameter), moment)
    elif not parameter.requires_grad or not _is_partitioned(engine):
        parameter.data.copy_(value)
        if parameter.requires_grad and moments:
            state_of = engine.optimizer.state[parameter]
            state_of.update({name: state.to(parameter.device).clone() for name, state in moments.items()})
            if step is not None:
                state_of["step"] = torch.tensor(step)
    else:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
        for moment, state in moments.items():
            safe_set_full_optimizer_state(parameter, state.to(parameter.device), moment)


def _gathered_for_writing(parameter: Tensor) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def _own_slice(value: Tensor, parameter: Any) -> Tensor:
    # safe_set_full_* fails under ZeRO-3 where the size is not divisible by the workers: cut the padded slice here.
    size = parameter.partition_numel()
    flat = value.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * dist.get_world_size() - flat.numel()))
    return padded.narrow(0, size * dist.get_rank(), size).to(parameter.device)


def _check_fits(engine: Any, stored: dict[str, tuple[int, ...]]) -> None:
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}
    differences = [f"{name}: checkpoint {stored.get(name, 'has none')}, model {shapes.get(name, 'has none')}"
                   for name in sorted(shapes.keys() | stored.keys()) if shapes.get(name) != stored.get(name)]
    if differences:
        shown = "\n  ".join(differences[:10])
        raise UserError(f"the checkpoint does not fit the model ({len(differences)} differences):\n  {shown}\n"
                        "Give this run another output, or the configuration it was started with")


def _host_copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)
