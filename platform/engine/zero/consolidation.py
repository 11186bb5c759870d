"""Convert the partitioned state of a DeepSpeed engine to plain tensors, and back.

A plain ZeRO checkpoint can only be loaded by the same number of workers that wrote it. The payload here holds full fp32
parameters and per-parameter optimizer moments by name. Any number of workers, any ZeRO stage and plain PyTorch can continue
from it.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from platform.engine.errors import UserError
from platform.engine.runtime.collectives import broadcast_object, broadcast_tensor, broadcast_tensors
from platform.engine.zero.partitions import full_parameter, is_partitioned, is_stage3, partitions, torch_optimizer


def consolidate(engine: Any) -> dict[str, Any]:
    """The full state of the engine on the CPU of rank 0; {} on other ranks. Collective.

    {"parameters": {name: fp32 tensor}, "buffers": {name: tensor}, "moments": {moment: {name: fp32 tensor}},
    "optimizer_steps": {name: number of steps}, "optimizer": name of its class}. Buffers that are not persistent belong to the
    configuration and are left out.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    first = dist.get_rank() == 0
    partitioned = is_partitioned(engine)
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
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in _persistent_buffers(engine.module)}
    return {
        "parameters": parameters,
        "buffers": buffers,
        "moments": optimizer,
        "optimizer_steps": steps,
        "optimizer": _optimizer_class(engine),
    }


def restore(engine: Any, payload: dict[str, Any] | None) -> list[str]:
    """Load a payload of `consolidate` into an engine of any ZeRO stage and number of workers. Collective.

    payload: used on rank 0 only. It is broadcast tensor by tensor, so that only rank 0 ever holds all of it.

    Buffers that the model does not keep in its state dict are passed over: payloads of earlier versions hold them. So are the
    moments of another optimizer; the engine's optimizer then begins with new ones.

    Returns the names of the moments that were passed over.

    Raises UserError on every worker if parameters or buffers differ in name or shape (it lists them), or if the payload is of an
    earlier version.
    """
    payload = payload if dist.get_rank() == 0 else None
    layout = broadcast_object(
        payload
        and "optimizer_steps" in payload
        and {
            "shapes": {name: tuple(value.shape) for name, value in payload["parameters"].items()},
            "buffers": {name: tuple(value.shape) for name, value in payload["buffers"].items()},
            "moments": {moment: list(values) for moment, values in payload["moments"].items()},
            "optimizer_steps": payload["optimizer_steps"],
            "optimizer": payload.get("optimizer", ""),
        }
    )
    if not layout:
        raise UserError(
            "the checkpoint is of an earlier version, which counted the optimizer's steps in another way: finish the "
            "run with that version, or give this run another output"
        )
    _check_fits(engine, layout["shapes"], layout["buffers"])
    foreign: list[str] = []
    if _is_of_another_optimizer(engine, layout):
        foreign, layout = sorted(layout["moments"]), layout | {"moments": {}, "optimizer_steps": {}}
    steps = layout["optimizer_steps"]
    if is_partitioned(engine):
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
        if hasattr(engine.optimizer, "update_lp_params") and not is_stage3(engine):
            engine.optimizer.update_lp_params()
        buffers = broadcast_tensors(payload and payload["buffers"])
        for name, buffer in _persistent_buffers(engine.module):
            buffer.copy_(buffers[name])
    return foreign


def _optimizer_class(engine: Any) -> str:
    return type(torch_optimizer(engine)).__name__


def _is_of_another_optimizer(engine: Any, layout: dict[str, Any]) -> bool:
    """Whether the moments are not those of the engine's optimizer. SGD and LARS share a name, not a scale."""
    own = _optimizer_class(engine)
    if layout["optimizer"]:
        return bool(layout["optimizer"] != own)
    # A payload of an earlier version does not name its optimizer.
    return bool(layout["moments"]) and ("exp_avg" in layout["moments"]) != (own == "AdamW")


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, buffer) of the buffers in the state dict of `module`."""
    kept = module.state_dict()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def _optimizer_layout(engine: Any) -> tuple[dict[str, float], list[str]]:
    """({parameter name: optimizer steps}, names of the per-element moments). The dict is {} if the optimizer counts no steps."""
    parts, names = partitions(engine), {id(value): name for name, value in engine.module.named_parameters()}
    moments = sorted(
        {key for part in parts for key, value in part.state.items() if isinstance(value, Tensor) and value.dim() > 0}
    )
    steps = {
        names[id(parameter)]: float(part.state["step"]) for part in parts if "step" in part.state for parameter in part.parameters
    }
    return steps, moments


def _link_optimizer_state(engine: Any) -> None:
    # DeepSpeed links the optimizer state to the parameters only after the step of the first group. With several groups, the
    # state of the others stays empty unless it is linked again.
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _create_optimizer_state(engine: Any, moments: Iterable[str], steps: dict[str, float]) -> None:
    """Create zero moments and set the step counts: a new engine has no optimizer state that could be filled."""
    names = {id(value): name for name, value in engine.module.named_parameters()}
    for part in partitions(engine):
        state = torch_optimizer(engine).state[part.flat]
        for moment in moments:
            state[moment] = torch.zeros_like(part.flat, dtype=torch.float32)
        if part.parameters and names[id(part.parameters[0])] in steps:  # all of a partition have one count
            state["step"] = _step_count(steps[names[id(part.parameters[0])]], part.flat, part.group)


def _step_count(count: float, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """Step count as a scalar tensor: fused optimizers keep it on the parameter's device, others on the CPU."""
    return torch.tensor(count, device=parameter.device if group.get("fused") else "cpu")


def _restore_parameter(engine: Any, parameter: Tensor, value: Tensor, moments: dict[str, Tensor], step: float | None) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if is_stage3(engine):
        with _gathered_for_writing(parameter):
            parameter.data.copy_(value) if parameter.data.shape == value.shape else None
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, _own_slice(value, parameter))
            for moment, state in moments.items():
                safe_set_local_optimizer_state(parameter, _own_slice(state, parameter), moment)
    elif not parameter.requires_grad or not is_partitioned(engine):
        parameter.data.copy_(value)
        if parameter.requires_grad and moments:
            state_of = engine.optimizer.state[parameter]
            state_of.update({name: state.to(parameter.device).clone() for name, state in moments.items()})
            if step is not None:
                group = next(one for one in engine.optimizer.param_groups if any(own is parameter for own in one["params"]))
                state_of["step"] = _step_count(step, parameter, group)
    else:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
        for moment, state in moments.items():
            safe_set_full_optimizer_state(parameter, state.to(parameter.device), moment)


def _gathered_for_writing(parameter: Tensor) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def _own_slice(value: Tensor, parameter: Any) -> Tensor:
    # safe_set_full_* fails under ZeRO-3 if the size is not divisible by the number of workers: cut the padded slice here.
    size = parameter.partition_numel()
    flat = value.flatten()
    padded = torch.nn.functional.pad(flat, (0, size * dist.get_world_size() - flat.numel()))
    return padded.narrow(0, size * dist.get_rank(), size).to(parameter.device)


def _check_fits(engine: Any, stored: dict[str, tuple[int, ...]], buffers: dict[str, tuple[int, ...]]) -> None:
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}
    own = {name: tuple(buffer.shape) for name, buffer in _persistent_buffers(engine.module)}
    shapes |= own
    stored = stored | {name: buffers[name] for name in own if name in buffers}
    differences = [
        f"{name}: checkpoint {stored.get(name, 'has none')}, model {shapes.get(name, 'has none')}"
        for name in sorted(shapes.keys() | stored.keys())
        if shapes.get(name) != stored.get(name)
    ]
    if differences:
        shown = "\n  ".join(differences[:10])
        raise UserError(
            f"the checkpoint does not fit the model ({len(differences)} differences):\n  {shown}\n"
            "Give this run another output, or the configuration it was started with"
        )


def _host_copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)
