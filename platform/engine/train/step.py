"""What a step computes from all its micro-batches, whoever computed them: numbers that no number of workers changes."""

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
    """Averages over all micro-batches of an optimizer step, whoever computed them. Every worker brings the same keys."""

    def __init__(self) -> None:
        self._sums: dict[Key, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[Key, Tensor]) -> None:
        """Of one micro-batch."""
        self.add_uncounted(values)
        self._count += 1

    def add_uncounted(self, values: Mapping[Key, Tensor]) -> None:
        """Values that belong to no micro-batch of their own; `reduce` divides them by all micro-batches too."""
        for key, value in values.items():
            value = value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def reduce(self) -> dict[Key, Tensor]:
        """Collective: the means over all workers' micro-batches; starts afresh."""
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
        means = {key: means[key] for key in self._sums}  # in the order in which they came
        self._sums, self._count = {}, 0
        return means


class StepRows:
    """Tensors of all micro-batches of an optimizer step in their order, whoever computed them."""

    def __init__(self) -> None:
        self._own: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Of one micro-batch, (B, ...) each; every micro-batch brings the same names and shapes."""
        for name, value in values.items():
            self._own.setdefault(name, []).append(value.detach())

    def gather(self) -> dict[str, Tensor]:
        """Collective: (micro-batches * B, ...) of each name; starts afresh."""
        world, gathered = world_size(), {}
        for name in sorted(self._own):
            own = torch.stack(self._own[name])
            parts = [own]
            if world > 1:
                parts = [torch.empty_like(own) for _ in range(world)]
                dist.all_gather(parts, own)
            gathered[name] = torch.stack(parts, dim=1).flatten(0, 2)  # micro-batch j is the (j // world)-th of worker j % world
        self._own = {}
        return gathered


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step left, the same on every worker. Means are over all its micro-batches."""

    terms: dict[str, Tensor]
    """Means of the loss and its terms."""
    statistics: dict[str, Tensor]
    """Means of what the objective remembers."""
    batch_norms: dict[str, Tensor]
    """Means of what batch norms saw, for `StepBatchNorm.commit`."""
    notices: dict[str, Tensor]
    """Above 0 for each kind of notice that some worker was given."""
    corrupt: Tensor
    """Unreadable samples of a micro-batch, on average."""
    rows: dict[str, Tensor]
    """(micro-batches * B, ...) each, in the order of the micro-batches."""


class StepExchange:
    """Collects the parts of a StepResult. Means travel in one collective, rows in one for each of their names."""

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
        """What one micro-batch left."""
        self._means.add({**_part("terms", terms), **_part("statistics", statistics), **_part("batch_norms", batch_norms)})
        self._rows.add(rows)

    def count_corrupt(self, samples: Tensor) -> None:
        """Of a micro-batch."""
        self._means.add_uncounted({("corrupt", ""): samples})

    def tell(self, notices: Mapping[str, Tensor]) -> None:
        """What this worker was told."""
        self._means.add_uncounted(_part("notices", notices))

    def reduce(self) -> StepResult:
        """Collective."""
        means = self._means.reduce()

        def of(part: str) -> dict[str, Tensor]:
            return {name: value for (kind, name), value in means.items() if kind == part}

        return StepResult(
            of("terms"), of("statistics"), of("batch_norms"), of("notices"), means["corrupt", ""], self._rows.gather()
        )


def _part(kind: str, values: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    return {(kind, name): value for name, value in values.items()}


class StepBatchNorm:
    """Advances batch-norm running statistics once per optimizer step, from the mean over all its micro-batches.

    Ordinary layers move at every forward pass, so the result would depend on who computed which micro-batch in which order.
    Here each forward leaves its own batch statistics in the buffers (momentum 1), a hook collects them, `micro_batch_done`
    hands them to the step's means, and `commit` makes the one step. Normalization itself stays per micro-batch.
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
        """After each micro-batch: what its forward passes left, for `StepMeans.add`."""
        folded = {str(i): torch.stack(seen).mean(0) for i, seen in enumerate(self._collected) if seen}
        self._collected = [[] for _ in self.layers]
        return folded

    def commit(self, means: dict[str, Tensor]) -> None:
        """running <- (1 - momentum) running + momentum * mean over the step, of what `micro_batch_done` gave."""
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
        """After a checkpoint was restored into the layers."""
        self.committed = [self._buffers(layer) for layer in self.layers]

    @staticmethod
    def _buffers(layer: Any) -> list[Tensor]:
        return [layer.running_mean.detach().clone(), layer.running_var.detach().clone()]


def world_size() -> int:
    """Workers of this run; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check_finite(loss: Tensor, terms: dict[str, Tensor], where: str, advice: str) -> None:
    """Stops before a broken update reaches the weights: UserError naming the place and the terms of the loss."""
    if not torch.isfinite(loss):
        values = ", ".join(f"{name}={float(value):.4g}" for name, value in terms.items())
        raise UserError(f"the loss is not finite {where} ({values}). {advice}")
