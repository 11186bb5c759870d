"""Checkpoints of a pre-training run: when they are due, and their content. They do not depend on the number of workers."""

import time

from platform.engine.config.compose import to_plain
from platform.engine.pretrain.learner import Learner
from platform.engine.runs.metrics import Tracker
from platform.engine.runs.run_folder import environment
from platform.engine.secrets import hidden
from platform.engine.train.checkpoints import BackgroundWriter, CheckpointStore
from platform.engine.train.worker import report_line
from platform.engine.zero.consolidation import consolidate


class Saver:
    """Copies the state to host memory and publishes it in the background."""

    def __init__(self, learner: Learner, store: CheckpointStore, tracker: Tracker | None) -> None:
        self.learner, self.tracker = learner, tracker
        self.writer = BackgroundWriter(store, learner.config.storage.retry_timeout_s, report_line)

    def is_due(self) -> bool:
        """Whether a checkpoint is due after this step. Raises the error of the previous checkpoint, if it failed."""
        self.writer.check()
        return self.learner.place.is_time_for(self.learner.config.checkpoint.every_steps)

    def save(self, *, wait: bool) -> float:
        """Copy the state and publish it as a checkpoint, in the background unless `wait`. Collective.

        Returns seconds: the time that training was stopped plus the time that writing the newest published checkpoint took. The
        log is published first: it may be ahead of a checkpoint, but never behind it.
        """
        started, learner = time.perf_counter(), self.learner
        learner.finite.check()  # a checkpoint must not contain the results of a non-finite step
        self.writer.flush()  # wait for the previous one before the copy, so that memory never holds three states
        student = consolidate(learner.engine)
        if student:
            assert self.tracker is not None
            objective = {name: value.detach().to("cpu", copy=True) for name, value in learner.objective.state_tensors().items()}
            metadata = {
                "config": hidden(to_plain(learner.config)),
                "data": learner.place.plan.checksum,
                "environment": environment(),
                "corrupt": learner.corrupt.state(),
            }
            self.writer.submit(
                learner.place.seen, {"student": student, "objective": objective}, metadata, before=self.tracker.publish
            )
        stall = self.writer.stall_seconds = time.perf_counter() - started
        if wait or learner.place.is_complete:
            self.writer.flush()  # no upload may be in progress when the workers end or are restarted
        return self.writer.seconds + stall
