"""Experiment trackers that a run can report to besides its own log: TensorBoard, Weights & Biases, MLflow.

Each of them gets the same rows. Wandb and MLflow identify a run by the URI of its folder, so running the same command again
continues the same entry. The trackers are optional (`pip install 'reidssl[tracking]'`). A configured tracker that cannot be
reached is an error at the start of the run.
"""

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from platform.engine.errors import UserError
from platform.engine.secrets import hide

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


def open_trackers(config: "TrackingConfig", run: str) -> list[ExperimentTracker]:
    """The trackers that `config` names, for the run folder `run`.

    Raises UserError if the package of a tracker is not installed or its service cannot be used.
    """
    chosen: list[tuple[str, str, Callable[[str, str], ExperimentTracker]]] = [
        ("tensorboard", config.tensorboard, TensorBoard),
        ("wandb", config.wandb, Wandb),
        ("mlflow", config.mlflow, lambda where, run: Mlflow(where, run, config.experiment)),
    ]
    trackers: list[ExperimentTracker] = []
    for name, where, build in chosen:
        if not where:
            continue
        try:
            trackers.append(build(where, run))
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
    """TensorBoard event files in a local folder."""

    def __init__(self, folder: str, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder)

    def add(self, position: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, position)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of a Weights & Biases project. The WANDB_* variables apply, e.g. WANDB_MODE=offline."""

    def __init__(self, project: str, run: str) -> None:
        import wandb

        self.run = wandb.init(
            project=project, name=run, id=_identity(run), resume="allow", settings=wandb.Settings(silent=True, console="off")
        )
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

    def __init__(self, uri: str, run: str, experiment: str) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(uri), Metric
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment)
        wanted = _identity(run)  # a hash, because a URI may contain quotes, which the filter cannot
        known = self.client.search_runs([number], filter_string=f"tags.`{self.TAG}` = '{wanted}'", max_results=1)
        self.run_id = (known[0] if known else self.client.create_run(number, run_name=run, tags={self.TAG: wanted})).info.run_id
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


def _identity(run: str) -> str:
    return hashlib.blake2b(run.encode(), digest_size=8).hexdigest()
