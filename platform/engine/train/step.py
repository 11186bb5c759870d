"""Results that a step computes from all its micro-batches. They do not depend on the number of workers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from platform.engine.errors import UserError
from platform.engine.runtime import device as devices

Key = TypeVar("Key", bound=Any)


class StepMeans(Generic[Key]):
    """Averages over all micro-batches of an optimizer step, of all workers. Every worker must add the same keys and shapes."""

    def __init__(self) -> None:
        self._sums: dict[Key, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[Key, Tensor]) -> None:
        """Add the values of one micro-batch."""
        self.add_uncounted(values)
        self._count += 1

    def add_uncounted(self, values: Mapping[Key, Tensor]) -> None:
        """Add values without counting a micro-batch. `reduce` divides them by the number of all micro-batches as well."""
        for key, value in values.items():
            value = value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def reduce(self) -> dict[Key, Tensor]:
        """The float32 means over the micro-batches of all workers; resets the sums. Collective."""
        keys = sorted(self._sums)
        flat = torch.cat(
            [self._sums[key].flatten().to(devices.device()) for key in keys]
            + [torch.tensor([float(self._count)], device=devices.device())]
        )
        if world_size() > 1:
            dist.all_reduce(flat)
        flat = flat[:-1] / flat[-1]
        pieces = flat.split([self._sums[key].numel() for key in keys])
        means = {key: piece.view_as(self._sums[key]) for key, piece in zip(keys, pieces, strict=True)}
        means = {key: means[key] for key in self._sums}  # in the order in which the keys were added
        self._sums, self._count = {}, 0
        return means


class StepRows:
    """Tensors of all micro-batches of an optimizer step, gathered from all workers in the order of the micro-batches."""

    def __init__(self) -> None:
        self._own: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the tensors of one micro-batch, (B, ...) each. Every micro-batch must have the same names and shapes."""
        for name, value in values.items():
            self._own.setdefault(name, []).append(value.detach())

    def gather(self) -> dict[str, Tensor]:
        """Tensors (micro-batches * B, ...) of each name; resets the collection. Collective."""
        world, gathered = world_size(), {}
        for name in sorted(self._own):
            own = torch.stack(self._own[name])
            parts = [own]
            if world > 1:
                parts = [torch.empty_like(own) for _ in range(world)]
                dist.all_gather(parts, own)
            gathered[name] = torch.stack(parts, dim=1).flatten(0, 2)  # micro-batch j is number j // world of worker j % world
        self._own = {}
        return gathered


@dataclass(frozen=True)
class StepResult:
    """Result of an optimizer step, the same on every worker. Means are over all micro-batches of the step."""

    terms: dict[str, Tensor]
    """Means of the loss and its terms."""
    statistics: dict[str, Tensor]
    """Means of the statistics from which the objective updates its state."""
    batch_norms: dict[str, Tensor]
    """Means of the batch statistics of the batch-norm layers, for `StepBatchNorm.commit`."""
    notices: dict[str, Tensor]
    """Above 0 for each kind of notice that at least one worker has seen."""
    corrupt: Tensor
    """Mean number of unreadable samples in a micro-batch."""
    rows: dict[str, Tensor]
    """Tensors (micro-batches * B, ...), in the order of the micro-batches."""


class StepExchange:
    """Collects the parts of a StepResult. All means need one collective; rows need one collective per name."""

    def __init__(self) -> None:
        self._means: StepMeans[tuple[str, str]] = StepMeans()
        self._rows = StepRows()

    def add(
        self,
        terms: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        batch_norms: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
    ) -> None:
        """Add the results of one micro-batch."""
        self._means.add({**_part("terms", terms), **_part("statistics", statistics), **_part("batch_norms", batch_norms)})
        self._rows.add(rows)

    def count_corrupt(self, samples: Tensor) -> None:
        """Add the number of unreadable samples of a micro-batch, a scalar."""
        self._means.add_uncounted({("corrupt", ""): samples})

    def tell(self, notices: Mapping[str, Tensor]) -> None:
        """Add the notices that this worker has seen."""
        self._means.add_uncounted(_part("notices", notices))

    def reduce(self) -> StepResult:
        """The result of the step, reduced over all workers; resets the collection. Collective."""
        means = self._means.reduce()

        def of(part: str) -> dict[str, Tensor]:
            return {name: value for (kind, name), value in means.items() if kind == part}

        return StepResult(
            of("terms"), of("statistics"), of("batch_norms"), of("notices"), means["corrupt", ""], self._rows.gather()
        )


def _part(kind: str, values: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    return {(kind, name): value for name, value in values.items()}


class StepBatchNorm:
    """Updates the running statistics of batch norms once per optimizer step, from the mean over all its micro-batches.

    Ordinary layers update them at every forward pass, so the result would depend on which worker computed which micro-batch and
    in which order. Here, each forward pass leaves its own batch statistics in the buffers (momentum 1) and a hook collects them.
    `micro_batch_done` returns them for the means of the step, and `commit` makes the update. Normalization itself stays per
    micro-batch.
    """

    def __init__(self, *models: nn.Module) -> None:
        self.layers = [
            layer for model in models for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]
        self.momenta = [0.1 if layer.momentum is None else layer.momentum for layer in self.layers]
        self.committed = [self._buffers(layer) for layer in self.layers]
        self._collected: list[list[Tensor]] = [[] for _ in self.layers]
        for index, layer in enumerate(self.layers):
            layer.momentum = 1.0
            layer.register_forward_hook(self._collector(index))

    def _collector(self, index: int) -> Callable[..., None]:
        def collect(layer: nn.Module, inputs: Any, output: Any) -> None:
            if layer.training:
                self._collected[index].append(torch.cat(self._buffers(layer)))

        return collect

    def micro_batch_done(self) -> dict[str, Tensor]:
        """Mean batch statistics of the forward passes of a micro-batch, for `StepMeans.add`. Call it after each micro-batch."""
        folded = {str(i): torch.stack(seen).mean(0) for i, seen in enumerate(self._collected) if seen}
        self._collected = [[] for _ in self.layers]
        return folded

    def commit(self, means: dict[str, Tensor]) -> None:
        """Update: running <- (1 - momentum) * running + momentum * mean.

        means: of the results of `micro_batch_done`, over the step.
        """
        for name, statistics in means.items():
            index = int(name)
            mean, variance = statistics.chunk(2)
            old_mean, old_variance = self.committed[index]
            momentum = self.momenta[index]
            self.committed[index] = [old_mean.lerp(mean, momentum), old_variance.lerp(variance, momentum)]
            layer = self.layers[index]
            layer.running_mean.copy_(self.committed[index][0])  # type: ignore[union-attr]
            layer.running_var.copy_(self.committed[index][1])  # type: ignore[union-attr]

    def reload(self) -> None:
        """Read the running statistics of the layers again. Call it after a checkpoint was restored into them."""
        self.committed = [self._buffers(layer) for layer in self.layers]

    @staticmethod
    def _buffers(layer: Any) -> list[Tensor]:
        return [layer.running_mean.detach().clone(), layer.running_var.detach().clone()]


def world_size() -> int:
    """Number of workers of this run; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check_finite(loss: Tensor, terms: dict[str, Tensor], where: str, advice: str) -> None:
    """Raise UserError if the loss is not finite, before a broken update reaches the weights. It names the place and the terms."""
    if not torch.isfinite(loss):
        values = ", ".join(f"{name}={float(value):.4g}" for name, value in terms.items())
        raise UserError(f"the loss is not finite {where} ({values}). {advice}")
