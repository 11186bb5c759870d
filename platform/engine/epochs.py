"""The loop of fine-tuning: a phase's epochs of batches and steps on every worker, a checkpoint after each epoch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from platform.engine import zero
from platform.engine.checkpoints import CheckpointStore, Found
from platform.engine.consolidation import consolidate, restore
from platform.engine.device import device, upload
from platform.engine.errors import UserError
from platform.engine.images import ImageSet
from platform.engine.launch import report_line
from platform.engine.optimizers import finetuning_optimizer
from platform.engine.phases import Epoch, Phase
from platform.engine.scaling import check_size
from platform.engine.steps import StepBatchNorm, StepMeans, check_finite
from platform.engine.tracking import Tracker, format_row
from reidssl.augment.reid import ReidAugment, ReidAugmentConfig, normalise
from reidssl.models.reid import ReidModel
from reidssl.seeding import mix, sample_seeds

EXTRACTION_BATCH = 128
Judge = Callable[[Phase], dict[str, Any]]


@dataclass(kw_only=True)
class PhaseTrainer:
    """What the phases of a run have in common."""

    setting: str
    seed: int
    augment: ReidAugmentConfig
    deepspeed: zero.DeepSpeedConfig
    evaluate_every: int
    store: CheckpointStore
    tracker: Tracker | None
    """Rank 0's; the others have none."""
    judge: Judge
    """Collective: the metrics of the model as it is."""

    def train(self, model: ReidModel, phase: Phase, number: int, found: Found | None) -> None:
        """Collective: the epochs of the `number`-th phase that `found`, the newest checkpoint, does not hold yet."""
        batch, world = phase.config.batch, dist.get_world_size()
        check_size(world, batch.micro_batches_per_step)
        norms = StepBatchNorm(model)
        engine = zero.build_engine(model, finetuning_optimizer(phase.config, model), self.deepspeed,
                                   micro_batch=batch.identities * batch.instances,
                                   accumulation=batch.micro_batches_per_step // world)
        first = 0
        if found and found.payload["phase"] == number:
            restore(engine, found.payload["student"])
            phase.load_state_tensors(found.payload["phase_state"])
            norms.reload()
            first = found.payload["epoch"]
        for epoch in range(first, phase.config.epochs):
            started = time.perf_counter()
            work = phase.begin(epoch, lambda images: extract(model, images, phase.config.neck, self.augment))
            row = self._epoch(engine, norms, phase, number, epoch, work) | work.log
            row |= {"learning_rate": phase.learning_rate(epoch),
                    "images_per_second": sum(map(len, work.batches)) / (time.perf_counter() - started)}
            if self.evaluate_every and (epoch + 1) % self.evaluate_every == 0:
                row |= {key: value for key, value in self.judge(phase).items() if key in ("mAP", "rank1")}
            self._keep(engine, phase, number, epoch, row)

    def _epoch(self, engine: Any, norms: StepBatchNorm, phase: Phase, number: int, epoch: int, work: Epoch) -> dict[str, float]:
        """Every step of an epoch; the means of its losses."""
        rank, batch, means, statistics = dist.get_rank(), phase.config.batch, StepMeans(), StepMeans()
        if 0 < len(work.batches) < batch.micro_batches_per_step:
            raise UserError(f"an epoch of {phase.images.location.uri} has {len(work.batches)} micro-batches of "
                            f"{batch.identities} x {batch.instances} images, a step needs {batch.micro_batches_per_step}: lower "
                            f"{phase.name}.batch.micro_batches_per_step or {phase.name}.batch.identities")
        if not work.batches and rank == 0:
            report_line(f"{phase.name} epoch {epoch + 1}: {work.log}: fewer than two clusters, nothing to contrast; this "
                        "epoch changes nothing. Another unsupervised.cluster.eps or a better init may help")
        augment = ReidAugment(self.augment)
        engine.module.train()
        zero.set_schedules(engine, phase.learning_rate(epoch))
        for steps, step in enumerate(grouped(work.batches, batch.micro_batches_per_step)):
            features, labels = [], []
            for index, positions in list(enumerate(step))[rank :: dist.get_world_size()]:
                images = augment(upload(phase.images.batch(positions)),
                                 batch_seeds(self.seed, phase.images, epoch, steps, positions))
                torch.manual_seed(mix(self.seed, number, epoch, steps, index))  # drop path
                target = upload(work.labels[positions])
                output = engine(images)
                loss, terms = phase.loss(output, target)
                where, advice = f"in {phase.name} epoch {epoch + 1} step {steps + 1}", f"Lower {phase.name}.learning_rate"
                check_finite(loss, terms, f"{where} on rank {rank}", advice)
                engine.backward(loss)
                zero.step(engine, self.deepspeed, where, advice)
                statistics.add(norms.micro_batch_done())
                means.add({"loss": loss} | terms)
                remembered = phase.remembered(output)
                if remembered is not None:
                    features.append(remembered.detach())
                    labels.append(target)
            norms.commit(statistics.reduce())
            if features:
                phase.after_step(*in_stream_order(features, labels))
        return {key: float(value) for key, value in means.reduce().items()} if work.batches else {}

    def _keep(self, engine: Any, phase: Phase, number: int, epoch: int, row: dict[str, Any]) -> None:
        """Collective: log the epoch and write its checkpoint; the log first: it may be ahead, never behind."""
        position = (number + 1) * 1_000_000 + epoch + 1
        student = consolidate(engine)
        if self.tracker:
            self.tracker.add(position, {"phase": number, "epoch": epoch + 1, **row})
            report_line(f"{self.setting} {phase.name} epoch {epoch + 1}/{phase.config.epochs}  {format_row(row)}")
            self.tracker.publish()
            state = {name: value.cpu() for name, value in phase.state_tensors().items()}
            self.store.save(position, {"student": student, "phase": number, "epoch": epoch + 1, "phase_state": state}, {})


def grouped(batches: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Whole steps of `size` micro-batches; a rest that does not fill a step is left out."""
    for start in range(0, len(batches) - size + 1, size):
        yield batches[start : start + size]


def batch_seeds(seed: int, images: ImageSet, epoch: int, step: int, positions: np.ndarray) -> Any:
    """Augmentation seeds; the same image may stand in a batch twice and is then augmented twice."""
    keys = [f"{images.keys[position]}#{step}.{place}" for place, position in enumerate(positions)]
    return sample_seeds(seed, epoch, keys)


def in_stream_order(features: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Collective: the step's features and labels in the order of its micro-batches, whoever computed them."""
    own = [(feature.cpu(), label.cpu()) for feature, label in zip(features, labels, strict=True)]
    world = dist.get_world_size()
    gathered: list[Any] = [own]
    if world > 1:
        gathered = [None] * world
        dist.all_gather_object(gathered, own)
    ordered = [pair for turn in zip(*gathered, strict=True) for pair in turn]
    return (torch.cat([feature for feature, _ in ordered]).to(device()),
            torch.cat([label for _, label in ordered]).to(device()))


@torch.no_grad()
def extract(model: ReidModel, images: ImageSet, neck: str, augment: ReidAugmentConfig) -> Tensor:
    """Collective: L2-normalised features (N, D) of all images on every worker; each computes its share."""
    rank, world = dist.get_rank(), dist.get_world_size()
    training = model.training
    model.eval()
    starts = list(range(0, len(images), EXTRACTION_BATCH))
    own = []
    for start in starts[rank::world]:
        batch = upload(images.batch(np.arange(start, min(start + EXTRACTION_BATCH, len(images)))))
        inputs = normalise(batch, augment.mean, augment.std).to(next(model.parameters()).dtype)
        own.append(model(inputs).embedding(neck).float().cpu())
    model.train(training)
    parts: list[Any] = [own]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, own)
    return torch.cat([parts[number % world][number // world] for number in range(len(starts))])
