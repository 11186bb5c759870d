"""Keep non-finite losses and gradients from the weights, and report the step, the rank and the terms of the loss."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from platform.engine.errors import UserError
from platform.engine.runtime.device import device
from platform.engine.train.step import check_finite
from platform.engine.zero import engine as zero
from platform.engine.zero.partitions import is_partitioned, torch_optimizer
from reidssl.optim import FirstBroken, broken_as_nan, can_mask, masked


class Finite:
    """Checks the losses and gradients of the steps of a run.

        engine.backward(finite.loss(output.loss, output.terms, step, meanwhile))
        finite.step(step)                   after every backward pass
        finite.check()                      before a log row or checkpoint is written

    If the optimizer can be masked on the device (it is fused, and every worker holds whole gradients), the host does not wait
    for the device until `check`. A non-finite step then leaves weights and moments unchanged. So do all later steps, because it
    may have corrupted the center and the statistics. Otherwise every micro-batch is checked at once, and the first non-finite one
    raises UserError.
    """

    def __init__(self, engine: Any, config: zero.EngineSettings, rank: int, advice: str) -> None:
        self.engine, self.config, self.rank, self.advice = engine, config, rank, advice
        self.masks = not is_partitioned(engine) and can_mask(torch_optimizer(engine))
        self._losses, self._norms = FirstBroken(device()), FirstBroken(device())

    def loss(self, loss: Tensor, terms: dict[str, Tensor], step: int, meanwhile: Callable[[], None]) -> Tensor:
        """The loss to call backward on, for a micro-batch of step number `step`.

        meanwhile: other work for the host, called only before it waits here for the device, which is busy with the forward pass.

        Raises UserError if losses are checked at once and this one is not finite.
        """
        if not self.masks:
            meanwhile()
            check_finite(loss, terms, f"at step {step} on rank {self.rank}", self.advice)
            return loss
        self._losses.watch(step, {"loss": loss} | terms)
        return broken_as_nan(loss)

    def step(self, step: int) -> None:
        """`zero.step` with masking where possible; call it after every backward pass."""
        if not (self.masks and self.engine.is_gradient_accumulation_boundary()):
            zero.step(self.engine, self.config, f"at step {step}", self.advice)
            return
        norm = zero.clip(self.engine, self.config)
        self._norms.watch(step, {"norm": norm})
        with masked(torch_optimizer(self.engine), norm):
            self.engine.step()
        zero.hold_frozen(self.engine)

    def check(self) -> None:
        """Raise UserError if a loss or gradient was not finite since the start. Waits for the device."""
        if not self.masks:
            return
        broken = self._losses.read()
        if broken:
            values = {name: torch.tensor(value) for name, value in broken[1].items()}
            check_finite(torch.tensor(math.nan), values, f"at step {broken[0]} on rank {self.rank}", self.advice)
        broken = self._norms.read()
        if broken:
            raise UserError(zero.broken_gradients(broken[1]["norm"], f"at step {broken[0]}", self.advice))
