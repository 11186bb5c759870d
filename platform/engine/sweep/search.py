"""Ray Tune around the trials: which point is next, and which trial is stopped early.

A Tune trial is a light function that starts its own Ray Train run. While it runs, the function reads the evaluations that the
run logs and passes them to Tune, whose scheduler may stop it. The workers of a stopped trial end with it.
"""

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.tune
from ray import cloudpickle
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from platform.engine.errors import user_error_of
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.runtime.terminal import forward_lines, relayed_lines, say
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.secrets import hide, remembered, take_over
from platform.engine.storage.location import Location
from platform.engine.sweep.leftovers import Leftovers
from platform.engine.sweep.population import Population, report_with_marker
from platform.engine.sweep.space import Point, text_of
from platform.engine.sweep.suggestions import Suggestions
from platform.engine.sweep.trials import STOP_RECORD, PointBook, evaluated, folder_of, is_done, row_of, space_of, trial_config

TRIAL: dict[str, float] = {"CPU": 0, "memory": 1}
"""Resources of the function that starts the workers of a trial and waits for them: a byte, since Tune wants something. A part of
a CPU would keep a worker that needs all CPUs of a node from it."""
POLL_S = 1.0
NO_RESULT = -1.0  # metric of a failed trial, below every metric, because Tune needs a number
STEP = "evaluations"


def run_trials(
    config: TuneConfig, book: PointBook, left: list[Point], location: Location, run: Callable[[FinetuneConfig], Any]
) -> dict[str, str]:
    """Run the trials with Ray Tune. Returns the reason of each failure ("" for none), by the point as JSON.

    left: the points of a grid to run. With Optuna, points are added to `book` until it has config.samples of them.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends this program like any other
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its boxes are printed even with verbose=0
    if config.search == "optuna":
        found = Suggestions(config.metric, config.seed, space_of(config).as_draws(), book, done_of(config, book.points))
        number, total, search, space = len(found.waiting) + config.samples - len(book.points), config.samples, found, None
    else:
        number, total, search = 1, len(book.points), None
        space = {"point": ray.tune.grid_search([json.dumps(point) for point in left])}
    with relayed_lines() as board:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial_function(config, run, board), TRIAL),
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                metric=config.metric,
                mode="max",
                search_alg=search,
                scheduler=scheduler_of(config, book),
                num_samples=number,
                max_concurrent_trials=config.concurrent,
                reuse_actors=False,  # the end of its actor ends a stopped trial
            ),
            run_config=ray.tune.RunConfig(
                name="ray_tune",
                storage_path=location.path,
                storage_filesystem=location.filesystem,
                # A trial's function may lie on a node that goes. Started again, it finds the checkpoints of its run.
                failure_config=ray.tune.FailureConfig(max_failures=config.finetune.scaling.max_failures),
                verbose=0,
                callbacks=[Progress(config, total, total - number if search else total - len(left))],
            ),
        )
        outcome = tuner.fit()
    if config.scheduler.name != "none":
        Leftovers().finish()
    return {
        result.config["point"]: (result.metrics or {}).get("reason") or reason_of(result.error)
        for result in (outcome[number] for number in range(len(outcome)))
        if result.config
    }


def done_of(config: TuneConfig, points: list[Point]) -> dict[str, float]:
    """Point as JSON -> metric, of the trials that need not run again."""
    rows = [row_of(config, point) for point in points]
    return {json.dumps(row["point"]): float(row[config.metric]) for row in rows if is_done(row)}


def trial_function(config: TuneConfig, run: Callable[[FinetuneConfig], Any], board: Any) -> Callable[[dict[str, Any]], None]:
    """The function of a Tune trial. It reports {metric, STEP, "reason"}; a failure is reported, not raised.

    Tune writes the function to a file below the sweep's output. So the settings, which may hold secrets, come over the board.
    """
    ray.get(board.keep.remote(cloudpickle.dumps((config, run, remembered()))))

    def trial(parameters: dict[str, Any]) -> None:
        config, run, known = cloudpickle.loads(ray.get(board.kept.remote()))  # made by this sweep, never read from a file
        take_over(known)
        if config.verbose:
            forward_lines(board)
        point, failed = json.loads(parameters["point"]), list[BaseException]()
        folder, population = folder_of(config, point), config.scheduler.name == "pbt"
        reported = len(evaluated(folder)) if population else 0  # those of the trial from which this one continues

        def work() -> None:
            try:
                run(trial_config(config, point))
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            if config.scheduler.name == "none":
                continue
            for row in evaluated(folder)[reported:]:
                reported += 1
                found = {config.metric: float(row[config.metric]), STEP: reported, "reason": ""}
                (report_with_marker if population else ray.tune.report)(found)  # ends a stopped trial
        metric = NO_RESULT if failed else float((folder / SUMMARY).read_json()[config.metric])
        reason = reason_of(failed[0]) if failed else ""
        ray.tune.report({config.metric: metric, STEP: reported + 1, "reason": reason})

    return trial


def scheduler_of(config: TuneConfig, book: PointBook) -> TrialScheduler:
    """The scheduler of Ray Tune that config.scheduler names."""
    chosen = config.scheduler
    if chosen.name == "pbt":
        return Population(config, book, STEP)
    if chosen.name == "asha":
        longest = 100_000  # trials end by themselves
        return Halving(time_attr=STEP, max_t=longest, grace_period=chosen.grace, reduction_factor=chosen.reduction)
    if chosen.name == "median":
        return Median(time_attr=STEP, grace_period=chosen.grace, min_samples_required=chosen.min_trials)
    return FIFOScheduler()


class WithoutFailures(TrialScheduler):
    """A scheduler that does not compare trials with a failed one, whose metric is no measurement."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.CONTINUE if result.get("reason") else super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not result.get("reason"):
            super().on_trial_complete(tune_controller, trial, result)


class Halving(WithoutFailures, AsyncHyperBandScheduler):
    """ASHA (arXiv 1810.05934)."""


class Median(WithoutFailures, MedianStoppingRule):
    """The median stopping rule (Google Vizier)."""


class Progress(ray.tune.Callback):
    """Prints a line when a trial ends, and records a trial that the scheduler stopped."""

    def __init__(self, config: TuneConfig, total: int, before: int) -> None:
        self.config, self.total, self.ended = config, total, before
        self.leftovers = Leftovers()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks to a file, and the settings may hold secrets."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.config.scheduler.name != "none":
            self.leftovers.remove()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        point, last = json.loads(trial.config["point"]), trial.last_result or {}
        folder = folder_of(self.config, point)
        if not last.get("reason") and not (folder / SUMMARY).exists():
            (folder / STOP_RECORD).write_json({STEP: last.get(STEP), "scheduler": self.config.scheduler.name})
        self._say(point, str(last.get("reason", "")))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        say(f"tune: {text_of(json.loads(trial.config['point']))}: its process died, it is started again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(json.loads(trial.config["point"]), "its process died")

    def _say(self, point: Point, reason: str) -> None:
        self.ended += 1
        row = row_of(self.config, point, reason)
        text = f"{self.config.metric} {100 * row[self.config.metric]:.1f}" if is_done(row) else row["state"]
        say(f"tune: {self.ended}/{self.total}  {text_of(point)}: {text}" + (f"; {row['reason']}" if row["reason"] else ""))


def reason_of(error: BaseException | None) -> str:
    """The reason of a failure in one line; "" if there is no error."""
    if error is None:
        return ""
    lines = [line.strip() for line in str(user_error_of(error) or error).splitlines() if line.strip()]
    return hide(lines[-1]) if lines else type(error).__name__
