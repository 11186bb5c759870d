"""Stages that run at the same time, each in a process of its own, as soon as the stages that they need are complete.

Fine-tunings do not depend on each other, and neither do pre-trainings on different parts of the images. A tiny model keeps one
core busy but not two, so that two stages side by side finish sooner than one after the other. On a cluster, each stage takes the
workers that it is given, and others use the rest.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from platform.engine.errors import StoppedError, UserError, user_error_of
from platform.engine.pipeline.results import Results
from platform.engine.pipeline.stages import Stage, nothing
from platform.engine.runtime.ray_session import LocalRay, join_as_part, local_ray
from platform.engine.runtime.terminal import forward_lines, relayed_lines, say
from platform.engine.secrets import hide, remembered, take_over
from platform.engine.train.stopping import caught_signals, order_stop

POLL_S = 0.5


class Outcome(NamedTuple):
    """How a stage ended: `error` is empty, or the message for the user with its exit status."""

    error: str = ""
    status: int = 0


class StageProcess:
    """Actor that runs stages one after the other and sends their lines to the terminal of the pipeline.

    What a stage imports and the worker that it kept serve the next one.
    """

    def __init__(self, local: LocalRay | None, board: Any) -> None:
        join_as_part(local)
        self.board = board

    def run(self, name: str, work: bytes) -> Outcome:
        """Run a stage. Errors that are not written for the user are raised."""
        forward_lines(self.board, f"{name} | ")
        stage, known = cloudpickle.loads(work)  # made by this pipeline, never read from a file
        take_over(known)
        try:
            stage()
        except Exception as error:
            found = user_error_of(error)
            if found is None:
                raise
            return Outcome(hide(str(found)), found.status)
        return Outcome()

    def stop(self) -> bool:
        """Ask the training of the current stage to write a checkpoint and end; False if there is no training."""
        return order_stop()


class Running(NamedTuple):
    """A stage that runs."""

    stage: Stage
    process: Any
    recording: ExitStack
    """Closed at the end of the stage, which results.json then shows."""


def run_together(stages: Sequence[Stage], results: Results, at_a_time: int, begin: Callable[[], Any] = nothing) -> None:
    """Run the stages in up to `at_a_time` processes; of those that may start, the first in the list starts first.

    begin: called once, in this process, before the first stage that needs others.

    After a failure or a signal, no stage is started, trainings write a checkpoint and stop, and other stages end as they are.

    Raises the error of the stage that failed, and StoppedError after SIGTERM or Ctrl-C.
    """
    with relayed_lines() as board, caught_signals() as stopping:
        processes = Processes(stages, results, at_a_time, board, begin)
        try:
            while not (processes.failure or stopping.number) and processes.start_ready():
                processes.wait()
            if stopping.number:
                name = "Ctrl-C" if stopping.number == signal.SIGINT else "SIGTERM"
                say(f"{name}: the trainings write a checkpoint and stop; once more: stop at once")
            elif processes.running:
                say("a stage failed: the trainings beside it write a checkpoint and stop")
            processes.stop()
        except BaseException as error:  # of a second signal, or of Ray
            processes.give_up(error)
            raise
        if processes.failure:
            raise processes.failure
        if stopping.number:
            raise StoppedError("stopped; run the same command again to continue", stopping.number)


class Processes:
    """The processes of a pipeline and the stages in them."""

    def __init__(
        self, stages: Sequence[Stage], results: Results, at_a_time: int, board: Any, begin: Callable[[], Any] = nothing
    ) -> None:
        self.results, self.at_a_time, self.board, self.begin = results, at_a_time, board, begin
        self.begun = False
        self.waiting = list(stages)
        self.total = len(stages)
        self.done: set[str] = set()
        self.idle: list[Any] = []
        self.running: dict[Any, Running] = {}
        self.failure: BaseException | None = None

    def start_ready(self) -> bool:
        """Start stages that may start while a process is free. Returns whether any stage runs."""
        for stage in list(self.waiting):
            beside = [one.stage for one in self.running.values()]
            if len(beside) == self.at_a_time:
                break
            if self.done.issuperset(stage.needs) and not (stage.pool and any(one.pool for one in beside)):
                if stage.needs and not self.begun:
                    self.begin()
                    self.begun = True
                self._start(stage)
        return bool(self.running)

    def _start(self, stage: Stage) -> None:
        say(f"--- stage {self.total - len(self.waiting) + 1}/{self.total}: {stage.name}")
        self.waiting.remove(stage)
        process = self.idle.pop() if self.idle else self._new_process()
        recording = ExitStack()
        recording.enter_context(self.results.stage(stage.name))
        ended = process.run.remote(stage.name, cloudpickle.dumps((stage.run, remembered())))
        self.running[ended] = Running(stage, process, recording)

    def _new_process(self) -> Any:
        """On the machine of this program, because any other one may be removed."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(num_cpus=0, max_concurrency=2, scheduling_strategy=here)(StageProcess)  # type: ignore[call-overload]
        return remote.remote(local_ray(self.at_a_time), self.board)

    def wait(self) -> None:
        """Wait a moment, and take note of the stages that have ended."""
        for ended in ray.wait(list(self.running), timeout=POLL_S)[0]:
            stage, process, recording = self.running.pop(ended)
            error = error_of(ended, stage)
            if error is None:
                recording.close()
                self.done.add(stage.name)
                self.idle.append(process)
                continue
            recording.__exit__(type(error), error, None)
            self.failure = self.failure or error

    def stop(self) -> None:
        """Have the stages end that run: with a checkpoint if they train, otherwise as they are."""
        first = self.failure
        for one in self.running.values():
            try:
                trains = ray.get(one.process.stop.remote())
            except ray.exceptions.RayActorError:  # it has just died
                continue
            if not trains:
                ray.kill(one.process)
        while self.running:
            self.wait()
        self.failure = first

    def give_up(self, error: BaseException) -> None:
        """Record the stages that still run as failed."""
        for one in self.running.values():
            one.recording.__exit__(type(error), error, None)


def error_of(ended: Any, stage: Stage) -> BaseException | None:
    """The error with which a stage ended; None if it is complete."""
    try:
        outcome: Outcome = ray.get(ended)
    except ray.exceptions.RayActorError:
        return UserError(f"the process of stage {stage.name} died; run the same command again to continue")
    except Exception as error:
        return error
    if not outcome.error:
        return None
    told = UserError(f"{stage.name}: {outcome.error}")
    told.status = outcome.status
    return told
