"""The moving average of the weights during fine-tuning, which is evaluated and exported in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the trained parameters, in float32, the same on every worker.

    average <- momentum * average + (1 - momentum) * weights, after every step (Mean Teacher, arXiv 1703.01780). Buffers are not
    averaged: the running statistics of batch norms are averages themselves.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model, self.momentum = model, momentum
        self.average = {name: value.detach().float().clone() for name, value in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Include the current weights. Call it after every optimizer step."""
        for name, value in self._trained():
            self.average[name].lerp_(value.float(), 1 - self.momentum)

    @torch.no_grad()
    def write(self) -> None:
        """Set the weights of the model to the average."""
        for name, value in self._trained():
            value.copy_(self.average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: the model has the averaged weights inside, and its own again afterwards."""
        own = {name: value.detach().clone() for name, value in self._trained()}
        self.write()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._trained():
                    value.copy_(own[name])

    def state(self) -> dict[str, Tensor]:
        """The average on the CPU, for a checkpoint."""
        return {name: value.cpu().clone() for name, value in self.average.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`."""
        for name, value in self.average.items():
            value.copy_(state[name])
