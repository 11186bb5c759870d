"""Optimizers of pre-training and fine-tuning, and the schedules that pre-training applies before every step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from platform.engine.schemas.phases_settings import PhaseConfig
from platform.engine.schemas.training_settings import OptimizerConfig
from reidssl.models.reid import ReidModel
from reidssl.optim import build_optimizer, decay_by_layer, parameter_groups, sgd_groups
from reidssl.schedules import Cosine


class Schedules:
    """Learning rate, weight decay and teacher momentum as functions of samples seen.

    Args:
        teacher_momentum: value at the start; it ends at 1.
        samples_per_epoch: unit of optimizer.warmup_epochs.
        total: length of the run in samples.
    """

    def __init__(
        self, optimizer: OptimizerConfig, teacher_momentum: float, global_batch: int, samples_per_epoch: int, total: int
    ) -> None:
        peak = optimizer.learning_rate * global_batch / 256
        warmup = min(optimizer.warmup_epochs * samples_per_epoch, total / 2)  # so that a short run still has its cosine phase
        self.learning_rate = Cosine(peak, optimizer.learning_rate_final, total, warmup, step=global_batch)
        self.weight_decay = Cosine(optimizer.weight_decay, optimizer.weight_decay_final, total)
        self.teacher_momentum = Cosine(teacher_momentum, 1.0, total)


def pretraining_optimizer(
    config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]], freezable: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """The configured optimizer. The schedules set the learning rate and weight decay of its groups.

    freezable: name suffixes of the parameters that are frozen for a part of the run.
    """
    groups = parameter_groups(named_parameters, 1.0, freezable)  # weight decay 1.0 marks the groups that follow the schedule
    return build_optimizer(config.name, groups, 0.0, config.momentum, config.beta2)


def finetuning_optimizer(config: PhaseConfig, model: ReidModel) -> torch.optim.Optimizer:
    """The optimizer of a phase: SGD with the parameter groups of the released code, or AdamW."""

    def layered(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return decay_by_layer(groups, model.named_parameters(), model.backbone.config.depth, config.layer_decay)

    if config.optimizer == "sgd":
        groups = sgd_groups(model.named_parameters(), config.learning_rate, config.weight_decay, config.bias_rate_factor)
    else:
        groups = parameter_groups(model.named_parameters(), config.weight_decay)
    return build_optimizer(config.optimizer, layered(groups), config.learning_rate)
