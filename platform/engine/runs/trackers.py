"""Experiment trackers that a run reports to besides its own log: TensorBoard, Weights & Biases, MLflow.

Each of them gets the same rows and the settings of the run. Wandb and MLflow identify a run by the URI of its folder, so running
the same command again continues the same entry. They are optional (`pip install 'reidssl[tracking]'`). A configured tracker that
cannot be reached is an error at the start of the run.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from platform.engine.errors import UserError
from platform.engine.secrets import hide
from platform.engine.storage.location import Location

if TYPE_CHECKING:
    from platform.engine.runs.metrics import TrackingConfig


class ExperimentTracker(Protocol):
    """Interface of a tracker."""

    def add(self, position: int, metrics: dict[str, float]) -> None:
        """Add the metrics at `position`, the number of images seen."""

    def flush(self) -> None:
        """Send or store the rows that were added."""

    def close(self) -> None:
        """Mark the run as complete and end the connection."""


def open_trackers(
    config: "TrackingConfig", root: Location, run: str, settings: Mapping[str, Any], after: int
) -> list[ExperimentTracker]:
    """The trackers that `config` names, for the run folder `root`.

    Args:
        run: name of the run.
        settings: of the run, nested, without secrets.
        after: position of the newest row that a resumed run keeps; -1: none.

    Raises UserError if the package of a tracker is not installed or its service cannot be used.
    """
    flat = dict(_flat(settings))
    chosen: list[tuple[str, str, Callable[[str], ExperimentTracker]]] = [
        ("wandb", config.wandb, lambda project: Wandb(project, run, flat)),
        ("mlflow", config.mlflow, lambda uri: Mlflow(uri, run, config.experiment, flat)),
    ]
    trackers: list[ExperimentTracker] = []
    if config.events:
        folder = Location(config.tensorboard, root.config) if config.tensorboard else root / "tensorboard"
        trackers.append(TensorBoard(folder, flat, after))
    for name, where, build in chosen:
        if not where:
            continue
        try:
            trackers.append(build(where))
        except ImportError:
            raise UserError(
                f"tracking.{name}={hide(where)} needs the package {name}, which is not installed on the worker's node: "
                "pip install 'reidssl[tracking]' there, or leave the option out"
            ) from None
        except Exception as error:
            text = hide(f"tracking.{name}={where} cannot be used: {type(error).__name__}: {error}")
            raise UserError(text) from None
    return trackers


class TensorBoard:
    """TensorBoard event files in a folder. Object storage gets a copy at each `flush`.

    TensorBoard hides the rows of earlier files that come after `after`: the resumed run adds them again.
    """

    def __init__(self, folder: Location, settings: Mapping[str, str], after: int) -> None:
        self.folder, self.settings, self.after = folder, settings, after
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None

    def add(self, position: int, metrics: dict[str, float]) -> None:
        with self.folder.errors("write TensorBoard's events to"):
            if self._writer is None:
                self._writer = self._open()
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, position)

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # here, because the import would delay the first step

        if self.folder.is_s3:
            self._copied = tempfile.TemporaryDirectory(prefix="reidssl-events-")
        writer = SummaryWriter(self._copied.name if self._copied else self.folder.path, purge_step=self.after + 1)
        writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in self.settings.items()))
        return writer

    def flush(self) -> None:
        if self._writer is None:
            return
        with self.folder.errors("write TensorBoard's events to"):
            self._writer.flush()
        for file in Path(self._copied.name).iterdir() if self._copied else ():
            (self.folder / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()
        if self._copied:
            self._copied.cleanup()


class Wandb:
    """A run of a Weights & Biases project. The WANDB_* variables apply, e.g. WANDB_MODE=offline."""

    def __init__(self, project: str, run: str, settings: Mapping[str, str]) -> None:
        import wandb

        self.run = wandb.init(
            project=project, name=run, id=_identity(run), resume="allow", settings=wandb.Settings(silent=True, console="off")
        )
        self.run.config.update(settings, allow_val_change=True)
        # wandb's own step may only grow, but a run that resumes from a checkpoint goes back: use "position" as axis.
        self.run.define_metric("position")
        self.run.define_metric("*", step_metric="position")

    def add(self, position: int, metrics: dict[str, float]) -> None:
        self.run.log({"position": position, **metrics})

    def flush(self) -> None:
        """Does nothing: wandb sends rows in the background."""

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of an MLflow experiment. A tag identifies it, so that a resumed run continues it."""

    TAG = "reidssl.run"

    def __init__(self, uri: str, run: str, experiment: str, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(uri), Metric
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment)
        wanted = _identity(run)  # a hash, because a URI may contain quotes, which the filter cannot
        known = self.client.search_runs([number], filter_string=f"tags.`{self.TAG}` = '{wanted}'", max_results=1)
        self.run_id = (known[0] if known else self.client.create_run(number, run_name=run, tags={self.TAG: wanted})).info.run_id
        if not known:  # MLflow refuses to change a parameter
            given = [Param(name, value[:500]) for name, value in settings.items()]  # the longest that every server takes
            for start in range(0, len(given), 100):  # largest number of parameters in one request
                self.client.log_batch(self.run_id, params=given[start : start + 100])
        self.waiting: list[Any] = []

    def add(self, position: int, metrics: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(name, float(value), now, position) for name, value in metrics.items()]

    def flush(self) -> None:
        for start in range(0, len(self.waiting), 1000):  # largest number of metrics in one request
            self.client.log_batch(self.run_id, metrics=self.waiting[start : start + 1000])
        self.waiting.clear()

    def close(self) -> None:
        self.flush()
        self.client.set_terminated(self.run_id)


def _flat(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as text) of every setting."""
    if isinstance(settings, Mapping) and settings:
        return [each for key, value in settings.items() for each in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, settings if isinstance(settings, str) else json.dumps(settings))] if prefix else []


def _identity(run: str) -> str:
    return hashlib.blake2b(run.encode(), digest_size=8).hexdigest()
