"""The trials of a sweep: their points, stored before they run, their configurations and their records."""

import hashlib
import json
from typing import Any

from platform.engine.config.compose import to_dataclass, to_plain
from platform.engine.errors import ConfigError, UserError
from platform.engine.runs.metrics import read_metrics
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.tune_settings import METRICS, TuneConfig
from platform.engine.secrets import hidden
from platform.engine.storage.location import Location, open_storage
from platform.engine.sweep.space import Point, Space, name_of, read_space, text_of, with_point

DEFAULT_SPACE = {"unsupervised": {"cluster": {"eps": [0.4, 0.5, 0.6, 0.7]}}}
FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped early", "failed", "not finished"
POINTS, STOP_RECORD = "points.json", "stopped.json"
RESERVED = {
    "output": "every trial has a folder of its own below output",
    "storage": "it is that of the sweep, storage",
    "runtime": "all trials run on the Ray of the sweep, runtime",
    "start_features": "all trials share one folder below output",
}


class PointBook:
    """The points of a sweep in the order in which they were drawn, kept in points.json.

    A point is stored before its trial runs, so a sweep that is started again continues the same trials.
    """

    def __init__(self, location: Location) -> None:
        self.file = location / POINTS
        found = self.file.read_json() if self.file.exists() else []
        if not isinstance(found, list) or not all(isinstance(point, dict) and point for point in found):
            raise UserError(f"{self.file.uri} is not the list of points that a sweep writes; choose another output")
        self.points: list[Point] = found

    def add(self, points: list[Point]) -> None:
        """Store further points."""
        self.points = [*self.points, *points]
        self.file.write_json(self.points)


def space_of(config: TuneConfig) -> Space:
    """The space of a sweep. Raises UserError if it is not one over the settings of platform.finetune."""
    return read_space(config.space or DEFAULT_SPACE, to_plain(config.finetune), RESERVED)


def planned(config: TuneConfig) -> list[Point]:
    """The points of a grid; with Optuna, which chooses later, points that together have every choice and every end of a range.

    Each is validated as a fine-tuning configuration. Raises UserError if two points of a grid are the same trial, ConfigError if
    one is not a valid configuration.
    """
    space = space_of(config)
    if config.search == "optuna":
        found = space.corners()
        for point in found:
            trial_config(config, point)
        return found
    found = space.points(config.samples, config.seed)
    seen: dict[str, Point] = {}
    for point in found:
        content = json.dumps(to_plain(trial_config(config, point)) | {"output": ""}, sort_keys=True)
        if content in seen:  # e.g. values [1, 1.0]
            raise UserError(f"space: {text_of(seen[content])} and {text_of(point)} are the same trial")
        seen[content] = point
    return found


def trial_config(config: TuneConfig, point: Point) -> FinetuneConfig:
    """Fine-tuning configuration of one point. The name of its output folder is made from the point."""
    plain = with_point(to_plain(config.finetune), point)
    plain["output"] = folder_of(config, point).uri
    plain["start_features"] = start_features(config).uri if plain["checkpoint"] else ""
    plain["storage"] = to_plain(config.storage)
    try:
        return to_dataclass(FinetuneConfig, plain)
    except ConfigError as error:
        raise ConfigError(f"space: {text_of(point)} cannot be: {str(error).removeprefix('configuration: ')}") from None


def start_features(config: TuneConfig) -> Location:
    """Folder in which the trials share the features of the checkpoint; removed when all trials are done."""
    return open_storage(config.output, config.storage) / "start_features"


def folder_of(config: TuneConfig, point: Point) -> Location:
    """Run folder of one point."""
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
    return open_storage(config.output, config.storage).joinpath("trials", f"{name_of(point)}-{digest}")


def evaluated(folder: Location) -> list[dict[str, Any]]:
    """The rows of a trial's log that have an evaluation after training, in order."""
    return [row for row in read_metrics(folder) if "mAP" in row and row.get("epoch")]


def row_of(config: TuneConfig, point: Point, reason: str = "") -> dict[str, Any]:
    """Record of one trial: its point, settings, state, reason of a failure and, if it finished or was stopped early, metrics.

    The metrics of a trial that was stopped early are those of its last evaluation.
    """
    folder = folder_of(config, point)
    row: dict[str, Any] = {**point, "point": point, "folder": folder.uri, "reason": "", "epochs": None}
    try:
        settings = trial_config(config, point)
        row |= {"seed": settings.seed, "config": hidden(to_plain(settings))}
    except ConfigError as error:  # a combination of drawn values that cannot be
        return row | {"state": FAILED, "reason": str(error)}
    if (folder / SUMMARY).exists():
        summary = (folder / SUMMARY).read_json()
        known = {"start": summary.get("start"), "weights": summary.get("weights"), "clusters": summary.get("clusters") or 0}
        known["warnings"] = summary.get("warnings") or []
        return row | {"state": FINISHED, **known, **{name: summary[name] for name in METRICS}}
    if (folder / STOP_RECORD).exists():
        last = evaluated(folder)[-1]
        known = {"epochs": int(last["epoch"]), "clusters": int(last.get("clusters", 0))}
        reason = (folder / STOP_RECORD).read_json().get("reason") or f"stopped after epoch {known['epochs']}"
        return row | {"state": STOPPED, "reason": reason, **known, **metrics_of(last)}
    return row | {"state": FAILED if reason else UNFINISHED, "reason": reason or "it was stopped before its end"}


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """The retrieval metrics in a row of a log."""
    return {name: float(row[name]) for name in METRICS if name in row}


def is_done(row: dict[str, Any]) -> bool:
    """Whether a trial need not run again."""
    return row["state"] in (FINISHED, STOPPED)
