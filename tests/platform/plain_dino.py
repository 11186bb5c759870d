"""The released DINO pre-training in plain PyTorch: schedules as arrays, losses pair by pair, one loop. No code of the project.

It follows the released main loop step by step: set rate and weight decay, loss with the old center, center, backward, clipping
of each tensor, no gradient for the last layer in the first epoch, AdamW, moving average.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Features = Callable[[State, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """The released settings, by epochs and steps."""

    epochs: int
    steps_per_epoch: int
    rate: float
    rate_final: float
    warmup_epochs: int
    decay: float
    decay_final: float
    momentum: float
    clip: float
    freeze_epochs: int
    student_temperature: float
    warmup_temperature: float
    temperature: float
    temperature_epochs: int
    center_momentum: float


def cosine(start: float, final: float, recipe: Recipe, warmup_epochs: int = 0) -> np.ndarray:
    """A value for each step: linear from 0 in the warm-up, then half a cosine."""
    warmup = warmup_epochs * recipe.steps_per_epoch
    rest = np.arange(recipe.epochs * recipe.steps_per_epoch - warmup)
    falling = final + 0.5 * (start - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate([np.linspace(0, start, warmup), falling])


def temperatures(recipe: Recipe) -> np.ndarray:
    """The teacher's temperature in each epoch."""
    rising = np.linspace(recipe.warmup_temperature, recipe.temperature, recipe.temperature_epochs)
    return np.concatenate([rising, np.full(recipe.epochs - recipe.temperature_epochs, recipe.temperature)])


def logits_of(state: State, crops: Sequence[Tensor], features: Features) -> list[Tensor]:
    """Logits (B, K) of each crop. Crops of one size go through the backbone together."""
    sizes = [crop.shape[-2:] for crop in crops]
    outputs: list[Tensor] = []
    for size in dict.fromkeys(sizes):
        group = [crop for crop, own in zip(crops, sizes, strict=True) if own == size]
        hidden = features(
            {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")},
            torch.cat(group),
        )
        for layer in (0, 2, 4):
            hidden = hidden @ state[f"head.mlp.{layer}.weight"].T + state[f"head.mlp.{layer}.bias"]
            if layer < 4:
                hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        directions = state["head.last_layer.weight_v"]
        outputs += (hidden @ (directions / directions.norm(dim=-1, keepdim=True)).T).chunk(len(group))
    return outputs


def train(
    initial: State, trained: set[str], recipe: Recipe, steps: Iterable[Sequence[Tensor]], features: Features
) -> tuple[list[float], State]:
    """Train on the crops of each step, the two global ones first. Returns (loss of each step, the teacher at the end).

    initial: weights and buffers of the student and, as a copy, the teacher; trained: the names of the weights.
    """
    student = {name: value.clone().requires_grad_(name in trained) for name, value in initial.items()}
    teacher = {name: value.clone() for name, value in initial.items()}
    with_decay = [student[name] for name in sorted(trained) if student[name].ndim > 1 and not name.endswith(".bias")]
    without = [student[name] for name in sorted(trained) if student[name].ndim <= 1 or name.endswith(".bias")]
    optimizer = torch.optim.AdamW([{"params": with_decay}, {"params": without, "weight_decay": 0.0}])
    rates = cosine(recipe.rate, recipe.rate_final, recipe, recipe.warmup_epochs)
    decays, momenta = cosine(recipe.decay, recipe.decay_final, recipe), cosine(recipe.momentum, 1.0, recipe)
    center, losses = torch.zeros(1, len(initial["head.last_layer.weight_v"])), []
    for step, crops in enumerate(steps):
        epoch = step // recipe.steps_per_epoch
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.param_groups[0]["weight_decay"] = decays[step]
        with torch.no_grad():
            taught = logits_of(teacher, crops[:2], features)
            targets = [F.softmax((logits - center) / temperatures(recipe)[epoch], dim=-1) for logits in taught]
        views = logits_of(student, crops, features)
        pairs = [
            (-target * F.log_softmax(view / recipe.student_temperature, dim=-1)).sum(-1).mean()
            for number, target in enumerate(targets)
            for other, view in enumerate(views)
            if other != number
        ]
        loss = sum(pairs) / len(pairs)
        center = center * recipe.center_momentum + torch.cat(taught).mean(0, keepdim=True) * (1 - recipe.center_momentum)
        optimizer.zero_grad()
        loss.backward()
        for name in trained:
            gradient = student[name].grad
            shrink = recipe.clip / (gradient.norm() + 1e-6)
            if shrink < 1:
                gradient.mul_(shrink)
            if epoch < recipe.freeze_epochs and "last_layer" in name:
                student[name].grad = None
        optimizer.step()
        with torch.no_grad():
            for name in trained:
                teacher[name].mul_(momenta[step]).add_((1 - momenta[step]) * student[name])
        losses.append(float(loss.detach()))
    return losses, teacher
