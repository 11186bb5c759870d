"""DeepSpeed around the model: build the engine, set its schedules by hand, step."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from platform.engine.errors import UserError
from platform.engine.runtime import device as devices
from platform.engine.schemas.training_settings import EngineSettings
from platform.engine.zero.partitions import is_partitioned, partitions
from reidssl.optim import clip_global_, clip_per_tensor_


def build_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: EngineSettings, *, micro_batch: int, accumulation: int
) -> Any:
    """DeepSpeed engine around `model`; each of `accumulation` backward passes counts 1 / accumulation."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # gloo does the communication on CPU; DeepSpeed's shared-memory kernels would be compiled here on first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    precision = devices.precision(config.precision)
    devices.allow_fast_products(precision)
    world = dist.get_world_size()
    stage = config.zero_stage if world > 1 else 0
    settings = {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 1000},
        # Not DeepSpeed's "bf16": it casts the weights of batch norms and not their statistics, which then do not fit.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "gradient_clipping": config.clip.norm
        if stage
        else 0.0,  # whole gradients are clipped in `step`, which looks at their norm
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def autocast(config: EngineSettings) -> torch.autocast:
    """The precision of the engine's forward passes, for a pass of its module outside the engine."""
    return torch.autocast(devices.device().type, dtype=torch.bfloat16, enabled=devices.precision(config.precision) == "bf16")


def set_schedules(
    engine: Any,
    learning_rate: float | Callable[[float], float],
    weight_decay: float | None = None,
    frozen: bool = False,
) -> None:
    """Hand-set hyperparameters of this step; only groups that were made with a weight decay follow it.

    learning_rate: the rate, or a function that gives it for a group's "base_factor" (1 where it has none). Either is multiplied
    by a group's "lr_factor".
    frozen: groups with "freezable" are held: `step` neither moves nor decays nor counts them.
    """
    for group in engine.optimizer.param_groups:
        factor = group.get("base_factor", 1.0)
        rate = learning_rate(factor) if callable(learning_rate) else factor * learning_rate
        group["lr"] = rate * group.get("lr_factor", 1.0)
        if weight_decay is not None and group.setdefault("decays", group["weight_decay"] > 0):
            group["weight_decay"] = weight_decay  # may pass through 0 and come back
        if "freezable" in group:
            group["is_frozen"] = frozen
            if frozen:
                group["lr"] = group["weight_decay"] = 0.0


def step(engine: Any, config: EngineSettings, where: str, advice: str) -> None:
    """After every backward pass; updates the weights after the last one of a step, clipped as configured.

    Raises UserError, on all workers and with the weights as they were, if the gradients are not finite.
    """
    last = engine.is_gradient_accumulation_boundary()
    whole = not is_partitioned(engine)
    if last and whole:
        _check_norm(clip(engine, config), where, advice)
    engine.step()
    if last and not whole:
        _check_norm(engine.get_global_grad_norm(), where, advice)  # DeepSpeed has passed over the update then
    if last:
        hold_frozen(engine)


def clip(engine: Any, config: EngineSettings) -> Tensor:
    """Clip whole gradients as configured; their norm before it, on the device."""
    if config.clip.per_tensor and config.clip.norm > 0:
        return clip_per_tensor_(engine.module.parameters(), config.clip.norm)
    return clip_global_(engine.module.parameters(), config.clip.norm or math.inf)


def hold_frozen(engine: Any) -> None:
    """After the step: parameters that rest have not taken it."""
    for part in partitions(engine):
        if part.group.get("is_frozen") and "step" in part.state:
            # Adam's moments stayed zero; a count that had run on would make its first real steps several times too long.
            part.state["step"].zero_()


def broken_gradients(norm: float, where: str, advice: str) -> str:
    """What is said of gradients that are not finite."""
    return f"the gradients are not finite {where} (norm {norm:.4g}); the weights were left as they were. {advice}"


def _check_norm(norm: Any, where: str, advice: str) -> None:
    if not math.isfinite(float(norm)):
        raise UserError(broken_gradients(float(norm), where, advice))
