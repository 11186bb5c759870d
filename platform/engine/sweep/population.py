"""Population based training (arXiv 1711.09846): the worst trials continue from the checkpoint of a good one, with other settings.

The new settings are a new point of the sweep with a run folder of its own, which begins with the checkpoints and the log of the
good trial. The replaced point counts as stopped.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray.tune.schedulers import PopulationBasedTraining

from platform.engine.errors import StorageError, UserError
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.runtime.terminal import say
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import Location
from platform.engine.sweep.draws import Draw
from platform.engine.sweep.space import Point, text_of
from platform.engine.sweep.trials import STOP_RECORD, PointBook, folder_of, space_of
from platform.engine.train.checkpoints import MANIFEST, CheckpointStore, LoadedCheckpoint

FACTORS = (0.8, 1.25)
RESAMPLED = 0.25
"""Share of the values that are drawn anew instead of moved, as in the paper."""
ATTEMPTS = 1000
COPIED = ("checkpoints", "metrics.jsonl")
MUTABLE = (
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "triplet_weight",
    "triplet_margin",
    "identity_scale",
    "identity_margin",
    "temperature",
    "momentum",
    "teacher_weight",
    "cluster.eps",
    "iterations",
)
"""Settings of a phase that may change between two epochs of a run."""


def check_population(config: TuneConfig, trials: int) -> None:
    """Raise UserError for a sweep that cannot be trained as a population. trials: number of its points."""
    draws = space_of(config).as_draws()
    fixed = [name for name in draws if name.partition(".")[2] not in MUTABLE]
    if fixed:
        raise UserError(
            f"space: {', '.join(fixed)} cannot change during a run, as scheduler.name=pbt requires; it can change supervised.X "
            f"and unsupervised.X for X of {', '.join(MUTABLE)}"
        )
    if not any(draw.kind != "choice" for draw in draws.values()):
        raise UserError(
            "scheduler.name=pbt needs a distribution, such as space.supervised.learning_rate={log_uniform:[1e-4,1e-2]}"
        )
    if config.concurrent < trials:
        raise UserError(
            f"scheduler.name=pbt trains all trials at the same time: concurrent must be at least their number, {trials}: got "
            f"{config.concurrent}. Lower samples, or raise concurrent"
        )


class Population(PopulationBasedTraining):
    """The scheduler of Ray Tune, with this project's points and checkpoints.

    step: name of the reported number of evaluations.
    """

    def __init__(self, config: TuneConfig, book: PointBook, step: str) -> None:
        super().__init__(
            time_attr=step,
            perturbation_interval=config.scheduler.grace,
            custom_explore_fn=self.explore,
            log_config=False,
        )
        self.config, self.book = config, book
        self.draws = space_of(config).as_draws()
        self.generator = np.random.default_rng([config.seed, len(book.points)])
        self.next: Point = {}
        """The point of the next trial that is replaced."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the settings, which may hold secrets: Tune writes its scheduler to a file."""
        return {name: value for name, value in vars(self).items() if name not in ("config", "book", "draws")}

    def explore(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters of the trial that is being replaced, for Ray Tune."""
        return {"point": json.dumps(self.next)}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The result of a trial that has ended or failed starts nothing new."""
        if result.get("reason") or (folder_of(self.config, json.loads(trial.config["point"])) / SUMMARY).exists():
            return self.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        before, donor = json.loads(trial.config["point"]), json.loads(trial_to_clone.config["point"])
        origin = folder_of(self.config, donor)
        if (origin / SUMMARY).exists():  # nothing is left to train: the trial goes on as it is
            return
        if newest_checkpoint(origin) is None:  # an evaluation is logged before the checkpoint of its epoch is complete
            return
        point = mutated(donor, self.draws, self.generator, self.book.points)
        if point is None:  # a small space, all of which was tried
            return
        self.next = point
        self.book.add([point])
        super()._exploit(tune_controller, trial, trial_to_clone)
        continue_from(origin, folder_of(self.config, point))
        reason = f"replaced by {text_of(point)}, from the checkpoint of {text_of(donor)}"
        (folder_of(self.config, before) / STOP_RECORD).write_json({"scheduler": "pbt", "reason": reason})
        say(f"tune: {text_of(before)}: {reason}")


def mutated(point: Point, draws: dict[str, Draw], generator: np.random.Generator, known: list[Point]) -> Point | None:
    """A new point near `point`: each number times one of FACTORS, each choice the one beside it, or drawn anew.

    known: points that the result must not equal. None if no other is found in ATTEMPTS draws.
    """
    for _ in range(ATTEMPTS):
        found = {
            name: draw.sample(generator) if generator.random() < RESAMPLED else draw.beside(point[name], FACTORS, generator)
            for name, draw in draws.items()
        }
        if found not in known:
            return found
    return None


def continue_from(donor: Location, folder: Location, attempts: int = 5) -> None:
    """Copy the newest checkpoint and the log of a running trial into a new folder.

    The trial may delete a checkpoint while it is copied, because it has written a newer one: then that one is copied. Raises
    StorageError if that fails `attempts` times.
    """
    for attempt in range(attempts):
        try:
            for name in COPIED:
                source = donor / name
                names = [item.name for item in source.list()] if name == "checkpoints" else [""]
                # Manifests last: a checkpoint that was copied in part does not count.
                for part in sorted(names, key=lambda one: one.endswith(MANIFEST)):
                    file = source / part if part else source
                    (folder / file.uri.removeprefix(f"{donor.uri}/")).write_bytes(file.read_bytes())
            if newest_checkpoint(folder) is not None:
                return
            problem = StorageError(f"{donor.uri} has no whole checkpoint to continue from")
        except StorageError as error:
            problem = error
        if attempt == attempts - 1:
            raise problem
        (folder / "checkpoints").delete()
        time.sleep(1.0)


def newest_checkpoint(folder: Location) -> LoadedCheckpoint | None:
    """The newest checkpoint of a run; None if it has none now, since the run may be replacing its only one."""
    try:
        return CheckpointStore(folder / "checkpoints").newest()
    except (StorageError, UserError):
        return None


def report_with_marker(metrics: dict[str, Any]) -> None:
    """Report metrics with a checkpoint of Ray Tune that says nothing: the scheduler wants one, the trials have their own."""
    with tempfile.TemporaryDirectory(prefix="reidssl-trial-") as folder:
        Path(folder, "see-checkpoints").touch()
        ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(folder))
