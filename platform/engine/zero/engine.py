"""The DeepSpeed engine around the model: build it, set its schedules, take a step."""

import logging
import math
import os
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
    """Build the DeepSpeed engine around `model`.

    Args:
        micro_batch: samples in a micro-batch.
        accumulation: backward passes in an optimizer step on each worker; each gradient counts 1 / accumulation.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On CPUs gloo communicates. DeepSpeed's shared-memory kernels are disabled, because they would be compiled on first use.
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
        # Not DeepSpeed's "bf16": it casts the weights of batch norms but not their statistics, and the dtypes then differ.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "gradient_clipping": config.clip.norm if stage else 0.0,  # whole gradients are clipped in `step`, which checks their norm
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a micro-batch
    }
    share_device(devices.device())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def share_device(device: torch.device) -> None:
    """Have DeepSpeed use this GPU, for good; does nothing for a CPU.

    DeepSpeed takes the GPU that LOCAL_RANK numbers, with ZeRO-3 also in later calls. Ray may have assigned another.
    """
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)


def autocast(config: EngineSettings) -> torch.autocast:
    """Autocast context with the precision of the engine, for forward passes of its module outside the engine."""
    return torch.autocast(devices.device().type, dtype=torch.bfloat16, enabled=devices.precision(config.precision) == "bf16")


def set_schedules(
    engine: Any,
    learning_rate: float | Callable[[float], float],
    weight_decay: float | None = None,
    frozen: bool = False,
) -> None:
    """Set the learning rate and weight decay of the coming step.

    Args:
        learning_rate: the rate, or a function that returns it for the "base_factor" of a group (1 for groups without one). It is
            multiplied by the "lr_factor" of the group.
        weight_decay: set only for groups that were built with a weight decay; None: unchanged.
        frozen: freeze the groups with "freezable": `step` does not update, decay or count them.
    """
    for group in engine.optimizer.param_groups:
        factor = group.get("base_factor", 1.0)
        rate = learning_rate(factor) if callable(learning_rate) else factor * learning_rate
        group["lr"] = rate * group.get("lr_factor", 1.0)
        if weight_decay is not None and group.setdefault("decays", group["weight_decay"] > 0):
            group["weight_decay"] = weight_decay  # remembered in "decays", because the schedule may pass through 0
        if "freezable" in group:
            group["is_frozen"] = frozen
            if frozen:
                group["lr"] = group["weight_decay"] = 0.0


def step(engine: Any, config: EngineSettings, where: str, advice: str) -> None:
    """Call after every backward pass. After the last one of a step, it clips the gradients and updates the weights.

    Raises UserError on all workers, with unchanged weights, if the gradients are not finite. where: place, for the message.
    """
    last = engine.is_gradient_accumulation_boundary()
    whole = not is_partitioned(engine)
    if last and whole:
        _check_norm(clip(engine, config), where, advice)
    engine.step()
    if last and not whole:
        _check_norm(engine.get_global_grad_norm(), where, advice)  # if not finite, DeepSpeed has skipped the update
    if last:
        hold_frozen(engine)


def clip(engine: Any, config: EngineSettings) -> Tensor:
    """Clip whole gradients as configured. Returns their norm before clipping, a scalar on the device."""
    if config.clip.per_tensor and config.clip.norm > 0:
        return clip_per_tensor_(engine.module.parameters(), config.clip.norm)
    return clip_global_(engine.module.parameters(), config.clip.norm or math.inf)


def hold_frozen(engine: Any) -> None:
    """Reset the step count of frozen parameters; call it after an optimizer step."""
    for part in partitions(engine):
        if part.group.get("is_frozen") and "step" in part.state:
            # Their Adam moments are still zero. A count above zero would make their first real steps several times too long.
            part.state["step"].zero_()


def broken_gradients(norm: float, where: str, advice: str) -> str:
    """Error message for non-finite gradients."""
    return f"the gradients are not finite {where} (norm {norm:.4g}); the weights were left as they were. {advice}"


def _check_norm(norm: Any, where: str, advice: str) -> None:
    if not math.isfinite(float(norm)):
        raise UserError(broken_gradients(float(norm), where, advice))
