"""The log of a pre-training run: terminal lines, metrics, probes and warnings of collapse."""

import time
from typing import Any

from platform.engine.inference.probe import Probe
from platform.engine.pretrain.learner import Learner
from platform.engine.runs.metrics import Tracker, format_row
from platform.engine.runs.run_folder import Run
from platform.engine.runtime.device import most_gpu_memory_gib
from platform.engine.storage.retry import patiently
from platform.engine.train.checkpoints import BackgroundWriter
from platform.engine.train.step import StepResult
from platform.engine.train.step_clock import StepClock
from platform.engine.train.worker import Restarts, reached, report_line, restarted_at
from reidssl.objectives.collapse import CollapseMonitor, signs


class StepLog:
    """The log of a run. Only rank 0 writes it; the other workers only check that their steps were finite."""

    def __init__(self, learner: Learner, run: Run, clock: StepClock) -> None:
        config, place = learner.config, learner.place
        self.learner, self.config, self.place, self.clock = learner, config, place, clock
        self.tracker: Tracker | None = None
        self._probe: Probe | None = None
        if place.rank == 0:
            self.tracker = patiently(
                lambda: Tracker(run.location, config.tracking, place.seen, labels=run.location.uri, settings=run.settings),
                config.storage.retry_timeout_s,
                report_line,
            )
            if config.probe.uri:
                self._probe = Probe(config.probe, config.model, config.augment, config.storage, config.stream.max_corrupt_share)
        self._collapse = CollapseMonitor(
            config.objective.name, config.objective.entropy_choices(config.stream.micro_batch), config.model.width
        )
        self._started, self._seen_before = time.perf_counter(), place.seen
        self._stepped = False
        self._restarts = restarted_at(place.seen) if place.rank == 0 else Restarts(0, 0)
        if self._probe and not self._restarts.times:
            for line in self._probe.remarks():
                report_line(line)

    def write(self, result: StepResult, writer: BackgroundWriter) -> None:
        """Write a row after a step if one or a probe is due, with the cost of a checkpoint published since the last row.

        Raises UserError, on the worker concerned, if a loss or gradient was not finite.
        """
        if self.tracker is not None and not self._stepped:
            self._stepped = True
            reached(self.place.seen)
        probes = bool(self.config.probe.uri) and self.place.is_time_for(self.config.probe.every_steps)
        if not (probes or self.place.is_time_for(self.config.tracking.every_steps)):
            return
        self.learner.finite.check()
        if self.tracker is None:
            return
        row = self._row(result)
        self._steps = (self.place.seen - self._seen_before) // self.place.batch
        self._started, self._seen_before = time.perf_counter(), self.place.seen
        if self._probe and probes:
            row |= self._probe(self.learner.objective.export_backbone())
            self._started = time.perf_counter()
        cost = {f"checkpoint_{name}": value for name, value in writer.take().items()}
        self.tracker.add(self.place.seen, row | cost | self._operation(row))
        reached(self.place.seen)
        report_line(f"step {self.place.step}/{self.place.steps}  epoch {self.place.epoch:.2f}  {format_row(row)}")
        for warning in self._collapse(row):
            report_line(f"warning: {warning}")

    def _operation(self, row: dict[str, Any]) -> dict[str, float]:
        """What the people who operate a cluster watch: where the time of a step goes, workers, restarts, memory, collapse."""
        found = {
            **self.clock.take(self._steps),
            "workers": self.place.world,
            "recoveries": self._restarts.times,
            "steps_lost": self._restarts.lost / self.place.batch,
            "collapse_signs": len(signs(row, self._collapse.name, self._collapse.choices, self._collapse.width)),
        }
        memory = most_gpu_memory_gib()
        return found | ({"gpu_memory_gib": memory} if memory else {})

    def _row(self, result: StepResult) -> dict[str, Any]:
        before, schedules = self.place.seen - self.place.batch, self.learner.schedules
        return {
            "loss": float(result.terms["loss"]),
            "learning_rate": schedules.learning_rate(before),
            "images_per_second": (self.place.seen - self._seen_before) / (time.perf_counter() - self._started),
            **{name: float(value) for name, value in result.terms.items() if name != "loss"},
            "teacher_momentum": schedules.teacher_momentum(before),
            "weight_decay": schedules.weight_decay(before),
        }
