"""The progress inside an epoch, as a checkpoint in the middle of it keeps it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from platform.engine.finetune.phase import Epoch
from platform.engine.train.step import StepMeans


@dataclass
class Progress:
    """The steps of an epoch that are done, and their means."""

    work: Epoch
    step: int = 0
    """Number of steps done."""
    parts: list[tuple[dict[str, float], int]] = field(default_factory=list)
    """Means of the loss and its terms over successive parts of these steps, with the number of steps of each part."""

    def add(self, means: StepMeans[str], step: int) -> None:
        """Add the steps up to `step`, whose values are in `means`, which is reset. Collective."""
        if step > self.step:
            self.parts.append(({name: float(value) for name, value in means.reduce().items()}, step - self.step))
            self.step = step

    def means(self) -> dict[str, float]:
        """Means over all steps done; {} without steps."""
        names = self.parts[0][0] if self.parts else {}
        return {name: sum(means[name] * steps for means, steps in self.parts) / self.step for name in names}

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint. It has the batches and labels: the features have changed since."""
        return {
            "step": self.step,
            "parts": [[means, steps] for means, steps in self.parts],
            "batches": [torch.from_numpy(batch) for batch in self.work.batches],
            "labels": torch.from_numpy(self.work.labels),
            "log": dict(self.work.log),
            "warnings": list(self.work.warnings),
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Progress":
        """The progress that `state` describes."""
        work = Epoch(
            [batch.numpy() for batch in state["batches"]], state["labels"].numpy(), state["log"], list(state["warnings"])
        )
        return cls(work, state["step"], [(means, steps) for means, steps in state["parts"]])
