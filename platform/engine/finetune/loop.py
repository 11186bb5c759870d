"""The training loop of fine-tuning: the epochs and steps of a phase on every worker, with a checkpoint after each epoch."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from platform.engine.data.joined import Images
from platform.engine.finetune.extraction import extract
from platform.engine.finetune.phase import Epoch, Phase
from platform.engine.finetune.pieces import StepFeatures, cut, rows_to_compute
from platform.engine.finetune.weight_average import WeightAverage
from platform.engine.inference.evaluation import retrieval_metrics
from platform.engine.runs.metrics import Tracker, format_row
from platform.engine.runtime.device import upload
from platform.engine.train.checkpoints import CheckpointStore, LoadedCheckpoint
from platform.engine.train.launch import report_line
from platform.engine.train.optimizers import finetuning_optimizer
from platform.engine.train.scaling import check_size
from platform.engine.train.step import StepBatchNorm, StepMeans, check_finite
from platform.engine.zero import engine as zero
from platform.engine.zero.consolidation import consolidate, restore
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.augment.reid_augment import ReidAugment
from reidssl.models.drop_path import StepDropPath, draw_by_step
from reidssl.models.reid import ReidModel
from reidssl.seeding import mix, sample_seeds

NOT_SHOWN = ("rank5", "rank10", "mINP")  # metrics that are logged but not printed after each epoch
Judge = Callable[[Phase], dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """A model in the training engine of its phase."""

    model: ReidModel
    phase: Phase
    number: int
    drop_paths: list[StepDropPath]
    norms: StepBatchNorm
    augment: ReidAugment
    engine: Any

    def inputs(self, seed: int, epoch: int, step: int, positions: np.ndarray, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(augmented images float (b, 3, H, W), camera rows int64 (b,) or None) of `rows` of a step.

        positions: int (B,), the images of the whole step. Camera rows are None for a model without cameras.
        """
        seeds = batch_seeds(seed, self.phase.images, epoch, step, positions)[rows]
        images = self.augment(upload(self.phase.images.batch(positions[rows])), seeds)
        return images, self.phase.images.cameras(positions[rows])

    def seed(self, seed: int, piece: slice, batch: int) -> None:
        """Seed the drop path before a forward pass of a piece, so that each row gets the mask of its place in the whole batch."""
        torch.manual_seed(seed)
        for layer in self.drop_paths:
            layer.place = rows_to_compute(piece).start, batch

    def backbone(self, seed: int, piece: slice, batch: int, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        """Features (b, D) of a piece, equal to those inside its forward pass through the engine."""
        self.seed(seed, piece, batch)
        features: Tensor = self.model.backbone(*inputs)
        return features


@dataclass(kw_only=True)
class PhaseTrainer:
    """Trains the phases of a run one after the other. It holds what they have in common."""

    setting: str
    seed: int
    augment: ReidAugmentConfig
    engine: zero.EngineSettings
    evaluate_every: int
    store: CheckpointStore
    tracker: Tracker | None
    """The metrics log on rank 0; None on the other ranks."""
    judge: Judge
    """Evaluates the current model of a phase and returns its metrics. Collective."""
    best_metric: str = ""
    """Metric by which the best model is kept; "": it is not kept."""
    best: dict[str, Any] | None = None
    """{"phase", "epoch", metrics} of the best evaluation so far, on rank 0."""
    publish_best: Callable[[Phase], None]
    """Writes the current model as the best one; called on rank 0."""
    images_seen: int = 0
    """Training images seen so far, over all phases."""

    def evaluate_start(self, phase: Phase) -> None:
        """Log an evaluation of the initial weights as epoch 0 of the first phase. Collective."""
        row = retrieval_metrics(self.judge(phase))
        if self.tracker:
            self.tracker.add(0, {"phase": 0, "epoch": 0, **row})
            report_line(f"{self.setting} before fine-tuning  mAP {row['mAP']:.4g}  rank1 {row['rank1']:.4g}")
            self.tracker.publish()

    def train(self, model: ReidModel, phase: Phase, number: int, found: LoadedCheckpoint | None) -> None:
        """Train the remaining epochs of a phase. Collective.

        Args:
            number: index of the phase, from 0.
            found: the newest checkpoint of the run; if it belongs to this phase, its epochs are skipped.
        """
        batch, world = phase.config.batch, dist.get_world_size()
        check_size(world, batch.micro_batches)
        trained = Trained(
            model,
            phase,
            number,
            draw_by_step(model),
            StepBatchNorm(model),
            ReidAugment(self.augment),
            zero.build_engine(
                model,
                finetuning_optimizer(phase.config, model),
                self.engine,
                micro_batch=-(-batch.images // batch.micro_batches),
                accumulation=batch.micro_batches // world,
            ),
        )
        first, momentum = 0, phase.config.ema_momentum
        average = WeightAverage(model, momentum) if momentum else None
        if found and found.payload["phase"] == number:
            restore(trained.engine, found.payload["student"])
            phase.load_state_tensors(found.payload["phase_state"])
            if average:
                average.load(found.payload["average"])
            trained.norms.reload()
            first = found.payload["epoch"]
        for epoch in range(first, phase.config.epochs):
            started = time.perf_counter()
            with average.applied() if average and phase.uses_teacher else nullcontext():
                work = phase.begin(epoch, lambda images: extract(model, images, phase.config.neck, self.augment))
            row = self._epoch(trained, epoch, work, average) | work.log
            seen = sum(map(len, work.batches))
            self.images_seen += seen
            row |= {"learning_rate": phase.learning_rate(epoch), "images_per_second": seen / (time.perf_counter() - started)}
            if self.evaluate_every and (epoch + 1) % self.evaluate_every == 0:
                with average.applied() if average else nullcontext():
                    row |= retrieval_metrics(self.judge(phase))
                    self._keep_best(phase, number, epoch, row)
            self._keep(trained, epoch, row, work.warnings, average)
        if average:
            average.write()

    def _keep_best(self, phase: Phase, number: int, epoch: int, row: dict[str, Any]) -> None:
        if not self.tracker or not self.best_metric or (self.best and row[self.best_metric] <= self.best[self.best_metric]):
            return
        self.best = {"phase": number, "epoch": epoch + 1, **retrieval_metrics(row)}
        self.publish_best(phase)

    def _epoch(self, trained: Trained, epoch: int, work: Epoch, average: WeightAverage | None) -> dict[str, float]:
        """Train one epoch. Returns the means of the loss and its terms; {} if there are no batches. Collective."""
        phase, means = trained.phase, StepMeans[str]()
        trained.engine.module.train()
        for norm in frozen_norms(trained.model):
            norm.eval()
        zero.set_schedules(trained.engine, partial(phase.learning_rate, epoch))
        for step, positions in enumerate(work.batches):
            labels = upload(work.labels[positions])
            remembered = self._step(trained, epoch, step, positions, labels, means)
            if remembered is not None:
                phase.after_step(remembered, labels)
            if average:
                average.update()
        return {key: float(value) for key, value in means.reduce().items()} if work.batches else {}

    def _step(
        self, trained: Trained, epoch: int, step: int, positions: np.ndarray, labels: Tensor, means: StepMeans[str]
    ) -> Tensor | None:
        """One optimizer step on the images at `positions` (B,). Returns features (B, D) for `after_step`, or None. Collective."""
        phase, engine, rank = trained.phase, trained.engine, dist.get_rank()
        where, advice = f"in {phase.name} epoch {epoch + 1} step {step + 1}", f"Lower {phase.name}.learning_rate"
        seed = mix(self.seed, trained.number, epoch, step, 0)  # for the drop path
        pieces = cut(len(positions), phase.config.batch.micro_batches)
        inputs = [
            (piece, trained.inputs(self.seed, epoch, step, positions, rows_to_compute(piece)))
            for piece in pieces[rank :: dist.get_world_size()]
        ]
        features, statistics = StepFeatures(pieces), StepMeans[str]()
        if len(inputs) > 1:
            with torch.no_grad(), zero.autocast(self.engine):
                features.gather([trained.backbone(seed, piece, len(positions), given) for piece, given in inputs])
            trained.norms.micro_batch_done()  # discard: the pass with gradients collects the same statistics again
        for piece, given in inputs:
            trained.seed(seed, piece, len(positions))
            output = engine(*given, among_all=partial(features.among_all, piece))
            loss, terms = phase.loss(output, labels)
            check_finite(loss, terms, f"{where} on rank {rank}", advice)
            engine.backward(loss)
            zero.step(engine, self.engine, where, advice)
            statistics.add(trained.norms.micro_batch_done())
            means.add({"loss": loss} | terms)
        trained.norms.commit(statistics.reduce())
        remembered = phase.remembered(output)
        return None if remembered is None else remembered.detach()

    def _keep(
        self, trained: Trained, epoch: int, row: dict[str, Any], warnings: list[str], average: WeightAverage | None
    ) -> None:
        """Log the epoch and write its checkpoint. Collective.

        The log is written first: it may be ahead of the checkpoint, but never behind it.
        """
        phase, number = trained.phase, trained.number
        student = consolidate(trained.engine)
        if self.tracker:
            self.tracker.add(self.images_seen, {"phase": number, "epoch": epoch + 1, **row})
            shown = {name: value for name, value in row.items() if name not in NOT_SHOWN}
            report_line(
                f"{self.setting} {phase.name} epoch {epoch + 1}/{phase.config.epochs}  {format_row(shown)}"
                + "".join(f"  warning: {warning}" for warning in warnings)
            )
            self.tracker.publish()
            state = {name: value.cpu() for name, value in phase.state_tensors().items()}
            # The position is not the images seen: an epoch without training sees none, and positions must increase.
            self.store.save(
                (number + 1) * 1_000_000 + epoch + 1,
                {
                    "student": student,
                    "phase": number,
                    "epoch": epoch + 1,
                    "images_seen": self.images_seen,
                    "phase_state": state,
                    "average": average.state() if average else {},
                },
                {},
            )


def frozen_norms(model: ReidModel) -> list[_BatchNorm]:
    """The batch norms of frozen layers: they normalize with their stored statistics in training, too."""
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in norms if not any(parameter.requires_grad for parameter in layer.parameters())]


def batch_seeds(seed: int, images: Images, epoch: int, step: int, positions: np.ndarray) -> Any:
    """Augmentation seeds uint64 (B,) of a step. An image that occurs twice in a batch gets two different seeds."""
    keys = [f"{images.keys[position]}#{step}.{place}" for place, position in enumerate(positions)]
    return sample_seeds(seed, epoch, keys)
