"""The model of a pre-training run in its training engine, and an optimizer step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from platform.engine.pretrain.place import Place
from platform.engine.runs.metrics import record_keys
from platform.engine.runtime.device import device, keep_compiled_code, precision
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.stream.corrupt import CorruptSamples
from platform.engine.train.optimizers import Schedules, pretraining_optimizer
from platform.engine.train.resume import ResumePoint, restore
from platform.engine.train.step import StepBatchNorm, StepExchange, StepResult
from platform.engine.train.worker import report_line
from platform.engine.zero import engine as zero
from platform.engine.zero.finite import Finite
from platform.engine.zero.partitions import full_parameters
from reidssl.accelerator import wants_compiling
from reidssl.objectives import build_objective
from reidssl.seeding import mix

ADVICE = (
    "The newest checkpoint is from before: run with another output and checkpoint.resume_from=<this output> to go on from "
    "it (or from an earlier one, checkpoint.resume_position=<samples>) with a lower optimizer.learning_rate or "
    "clip.norm, or with precision=fp32"
)


class Learner:
    """Student, teacher, optimizer and schedules of a run, on one worker. The constructor restores the checkpoint."""

    def __init__(self, config: PretrainConfig, place: Place, resume_point: ResumePoint) -> None:
        self.config, self.place = config, place
        self.objective = build_objective(config.model, config.objective, config.seed).to(device())
        self.objective.bf16_teacher = precision(config.precision) == "bf16"
        self.objective.train()
        self.norms = StepBatchNorm(self.objective)
        keep_compiled_code()
        if config.deepspeed.zero_stage < 3 and wants_compiling(config.compile, device()):
            self.objective.compile_backbones()
        optimizer = pretraining_optimizer(config.optimizer, self.objective.student.named_parameters(), self.objective.freezable)
        self.engine = zero.build_engine(
            self.objective.student,
            optimizer,
            config.engine,
            micro_batch=config.stream.micro_batch,
            accumulation=place.own_micro_batches,
        )
        self.finite = Finite(self.engine, config.engine, place.rank, ADVICE)
        self.schedules = Schedules(
            config.optimizer, config.objective.teacher_momentum, place.batch, place.plan.samples_per_epoch, place.total
        )
        self.corrupt = CorruptSamples(
            config.stream.max_corrupt_share, place.plan.samples_per_epoch, resume_point.metadata.get("corrupt")
        )
        restore(resume_point, self.engine, self.objective, self.norms, config.objective)

    def begin_step(self) -> "Step":
        """Start the next optimizer step: set its learning rate, weight decay and frozen parameters."""
        seen = self.place.seen
        zero.set_schedules(
            self.engine,
            self.schedules.learning_rate(seen),
            self.schedules.weight_decay(seen),
            self.objective.is_frozen(self.place.progress()),
        )
        return Step(self)


class Step:
    """One optimizer step: call `learn` for each micro-batch of this worker, then `end`."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.exchange = StepExchange()
        self.index = 0
        """Index of the next micro-batch among those of this worker."""

    def learn(self, batch: dict[str, Any], crops: Sequence[Tensor], prepare: Callable[[], None]) -> None:
        """Forward and backward pass of a micro-batch. After the last one of the step, the weights are updated.

        Args:
            crops: (B, 3, h, w) each.
            prepare: makes the next crops. It is called before the host waits for the device here, if it does.

        A non-finite loss or gradient never reaches the weights: it raises UserError here or in the next
        `self.learner.finite.check()`.
        """
        learner, place = self.learner, self.learner.place
        progress = place.progress(self.index)
        # Seed of drop path: depends on the micro-batch, not on the worker that computes it.
        torch.manual_seed(mix(learner.config.seed, place.seen, progress.micro_batch))
        output = learner.objective(learner.engine, list(crops), progress)
        learner.engine.backward(learner.finite.loss(output.loss, output.terms, place.step + 1, prepare))
        learner.finite.step(place.step + 1)
        self.exchange.add(output.terms, output.statistics, learner.norms.micro_batch_done(), output.rows)
        self.exchange.count_corrupt(learner.corrupt.add(batch))
        record_keys(learner.config.tracking.audit, place.seen // learner.config.stream.micro_batch + progress.micro_batch, batch)
        self.index += 1

    def end(self, notices: dict[str, Tensor]) -> StepResult:
        """Exchange the results of all workers, update batch norms, objective and teacher, and advance the place. Collective.

        notices: result of `Notices.seen` on this worker. Raises UserError on every worker if too many samples are unreadable.
        """
        learner, place = self.learner, self.learner.place
        self.exchange.tell(notices)
        result = self.exchange.reduce()
        learner.norms.commit(result.batch_norms)
        learner.objective.update(result.statistics, result.rows)
        learner.objective.update_teacher(full_parameters(learner.engine.module), learner.schedules.teacher_momentum(place.seen))
        for reason in learner.corrupt.step(result.corrupt, place.micro_batches, place.progress().epoch):
            report_line(f"set aside: {reason}")
        place.seen += place.batch
        return result
