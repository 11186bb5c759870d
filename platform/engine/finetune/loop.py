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

from platform.engine.finetune import extraction
from platform.engine.finetune.inside_epoch import Progress
from platform.engine.finetune.phase import Phase
from platform.engine.finetune.pieces import StepFeatures, cut, rows_to_compute
from platform.engine.finetune.start_features import StartFeatures
from platform.engine.finetune.trained import Trained
from platform.engine.finetune.weight_average import WeightAverage
from platform.engine.inference.evaluation import retrieval_metrics
from platform.engine.runs.metrics import Tracker, format_row
from platform.engine.runtime.device import upload
from platform.engine.storage.retry import patiently
from platform.engine.train.checkpoints import CheckpointStore, LoadedCheckpoint
from platform.engine.train.notices import Notices
from platform.engine.train.optimizers import finetuning_optimizer
from platform.engine.train.scaling import check_size
from platform.engine.train.step import StepBatchNorm, StepMeans, check_finite
from platform.engine.train.worker import heed, reached, report_line
from platform.engine.zero import engine as zero
from platform.engine.zero.consolidation import consolidate, restore
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.augment.reid_augment import ReidAugment
from reidssl.models.drop_path import draw_by_step
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.seeding import mix

NOT_SHOWN = ("rank5", "rank10", "mINP")  # metrics that are logged but not printed after each epoch
Judge = Callable[[Phase], dict[str, Any]]


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
    notice: Notices
    """Notices to this worker, on which a checkpoint is written inside an epoch."""
    judge: Judge
    """Evaluates the current model of a phase and returns its metrics. Collective."""
    best_metric: str = ""
    """Metric by which the best model is kept; "": it is not kept."""
    best: dict[str, Any] | None = None
    """{"phase", "epoch", metrics} of the best evaluation so far, on rank 0."""
    publish_best: Callable[[Phase], None]
    """Writes the current model as the best one; called on rank 0."""
    save_every_steps: int = 0
    """Steps between checkpoints inside an epoch; 0: only after each epoch."""
    images_seen: int = 0
    """Training images seen so far, over all phases."""
    start_features: StartFeatures | None = None
    """Where runs share the features of their initial weights; None: they do not."""

    def log_start(self, row: dict[str, Any]) -> None:
        """Log the retrieval metrics of the initial weights as epoch 0 of the first phase."""
        if self.tracker:
            self.tracker.add(0, {"phase": 0, "epoch": 0, **row})
            report_line(f"{self.setting} before fine-tuning  mAP {row['mAP']:.4g}  rank1 {row['rank1']:.4g}")
            self._patiently(self.tracker.publish)

    def train(self, model: ReidModel, phase: Phase, number: int, found: LoadedCheckpoint | None) -> bool:
        """Train the remaining epochs of a phase. Collective. Returns whether the run must stop, after a checkpoint.

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
        first, inside, momentum = 0, None, phase.config.ema_momentum
        average = WeightAverage(model, momentum) if momentum else None
        if found and found.payload["phase"] == number:
            restore(trained.engine, found.payload["student"])
            phase.load_state_tensors(found.payload["phase_state"])
            if average:
                average.load(found.payload["average"])
            trained.norms.reload()
            first, inside = found.payload["epoch"], found.payload.get("inside")
        for epoch in range(first, phase.config.epochs):
            started = time.perf_counter()
            if inside and epoch == first:
                progress = Progress.of(inside)
            else:
                extract = extraction.extract
                if self.start_features and not (found or number or epoch):
                    extract = self.start_features.extract
                features = partial(extract, model, neck=phase.config.neck, augment=self.augment, engine=self.engine)
                with average.applied() if average and phase.teacher_clusters else nullcontext():
                    progress = Progress(phase.begin(epoch, features))
            work, before = progress.work, progress.step
            if self._epoch(trained, epoch, progress, average):
                return True
            row = progress.means() | work.log
            self.images_seen += sum(map(len, work.batches))
            speed = sum(map(len, work.batches[before:])) / (time.perf_counter() - started)
            row |= {"learning_rate": phase.learning_rate(epoch), "images_per_second": speed}
            if self.evaluate_every and (epoch + 1) % self.evaluate_every == 0:
                with average.applied() if average else nullcontext():
                    row |= retrieval_metrics(self.judge(phase))
                    self._keep_best(phase, number, epoch, row)
            self._keep(trained, epoch, row, work.warnings, average)
        if average:
            average.write()
        return False

    def _keep_best(self, phase: Phase, number: int, epoch: int, row: dict[str, Any]) -> None:
        if not self.tracker or not self.best_metric or (self.best and row[self.best_metric] <= self.best[self.best_metric]):
            return
        self.best = {"phase": number, "epoch": epoch + 1, **retrieval_metrics(row)}
        self.publish_best(phase)

    def _epoch(self, trained: Trained, epoch: int, progress: Progress, average: WeightAverage | None) -> bool:
        """Train the rest of an epoch. Returns whether the run must stop inside it, after a checkpoint. Collective."""
        phase, work, means, begun = trained.phase, progress.work, StepMeans[str](), progress.step
        trained.train()
        zero.set_schedules(trained.engine, partial(phase.learning_rate, epoch))
        for step, positions in enumerate(work.batches[begun:], begun):
            labels = upload(work.labels[positions])
            soft = self._teacher(trained, average, epoch, step, positions) if average and phase.teacher_weight else None
            remembered = self._step(trained, epoch, step, positions, labels, soft, means)
            if remembered is not None:
                phase.after_step(remembered, labels)
            if average:
                average.update()
            if self.tracker and step == begun:
                reached(self.images_seen)
            told = self._told()
            due = self.save_every_steps and (step + 1) % self.save_every_steps == 0 and step + 1 < len(work.batches)
            if due or told:
                progress.add(means, step + 1)
                began = time.perf_counter()
                self._save(trained, epoch, average, progress)
                self.notice.checkpoint_took(time.perf_counter() - began)
            if told and heed(told, self.notice, f"{phase.name} epoch {epoch + 1} step {step + 1}"):
                return True
        progress.add(means, len(work.batches))
        return False

    def _told(self) -> str:
        """What the notices of all workers ask for: "save", "wait", "stop" or "". Collective."""
        means = StepMeans[str]()
        means.add(self.notice.seen())
        return self.notice.decide(means.reduce())

    @torch.no_grad()
    def _teacher(self, trained: Trained, average: WeightAverage, epoch: int, step: int, positions: np.ndarray) -> ReidOutput:
        """Output of the averaged weights for another augmentation of the images of a step, as in evaluation. Collective."""
        pieces = cut(len(positions), trained.phase.config.batch.micro_batches)
        trained.engine.module.eval()
        with average.applied(), zero.autocast(self.engine):
            own = [
                trained.model.features(*trained.inputs(self.seed, epoch, step, positions, rows_to_compute(piece), "teacher"))
                for piece in pieces[dist.get_rank() :: dist.get_world_size()]
            ]
            output = trained.model.output(StepFeatures(pieces).gather(own))
        trained.train()
        return output

    def _step(
        self,
        trained: Trained,
        epoch: int,
        step: int,
        positions: np.ndarray,
        labels: Tensor,
        teacher: ReidOutput | None,
        means: StepMeans[str],
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
                features.gather([trained.features(seed, piece, len(positions), given) for piece, given in inputs])
            trained.norms.micro_batch_done()  # discard: the pass with gradients collects the same statistics again
        for piece, given in inputs:
            trained.seed(seed, piece, len(positions))
            output = engine(*given, among_all=partial(features.among_all, piece))
            loss, terms = phase.loss(output, labels, teacher)
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
        if self.tracker:
            self.tracker.add(self.images_seen, {"phase": number, "epoch": epoch + 1, **row})
            shown = {name: value for name, value in row.items() if name not in NOT_SHOWN}
            report_line(
                f"{self.setting} {phase.name} epoch {epoch + 1}/{phase.config.epochs}  {format_row(shown)}"
                + "".join(f"  warning: {warning}" for warning in warnings)
            )
            self._patiently(self.tracker.publish)
        self._save(trained, epoch + 1, average)

    def _save(self, trained: Trained, epochs: int, average: WeightAverage | None, progress: Progress | None = None) -> None:
        """Write a checkpoint after `epochs` epochs, or inside the next one. Collective."""
        phase, number = trained.phase, trained.number
        student = consolidate(trained.engine)
        if self.tracker:
            state = {name: value.cpu() for name, value in phase.state_tensors().items()}
            # The position is not the images seen: an epoch without training sees none, and positions must increase.
            position = (number + 1) * 10**9 + epochs * 10**5 + (progress.step if progress else 0)
            payload = {
                "student": student,
                "phase": number,
                "epoch": epochs,
                "images_seen": self.images_seen,
                "phase_state": state,
                "average": average.state() if average else {},
                "inside": progress.state() if progress else None,
            }
            self._patiently(lambda: self.store.save(position, payload, {}))

    def _patiently(self, write: Callable[[], object]) -> None:
        """Write to storage on rank 0; the other workers wait at their next collective while storage fails."""
        patiently(write, self.store.root.config.retry_timeout_s, report_line)
