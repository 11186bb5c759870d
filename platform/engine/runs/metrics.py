"""Metrics of a run: `metrics.jsonl` in the run folder, Ray's Prometheus port and optional experiment trackers.

Only rank 0 writes them. Object storage cannot append, so the log is kept in memory (one small dict per interval) and
published as a whole. A resumed run keeps the rows up to its checkpoint and continues from there. Trackers
(platform/engine/runs/trackers.py) get the same rows. Steps repeated after a crash appear twice in the trackers, and once in
`metrics.jsonl`.
"""

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platform.engine.config.paths import OutputPath, ServiceAddress
from platform.engine.errors import UserError
from platform.engine.runs.gauges import show
from platform.engine.runs.trackers import open_trackers
from platform.engine.storage.location import Location
from reidssl.checks import at_least

FILE = "metrics.jsonl"


@dataclass(kw_only=True)
class TrackingConfig:
    """How often a run logs metrics, and where to."""

    every_steps: int = 20
    """Optimizer steps between log lines."""
    events: bool = True
    """Write TensorBoard event files."""
    tensorboard: OutputPath = ""
    """Folder of the event files; empty: tensorboard/ in the run folder."""
    wandb: str = ""
    """Weights & Biases project; empty: none. The API key comes from `wandb login` or WANDB_API_KEY on the worker's node."""
    mlflow: ServiceAddress = ""
    """MLflow tracking URI (http://host:5000, sqlite:///file.db); empty: none. Credentials: MLFLOW_TRACKING_* variables."""
    experiment: str = "reidssl"
    """Name of the MLflow experiment."""
    audit: OutputPath = ""
    """Folder, writable by every worker, for the epoch, the key and the CRC-32 of the pixels of each sample that was computed;
    empty: none."""

    def __post_init__(self) -> None:
        at_least(1, every_steps=self.every_steps)
        if self.audit.startswith("s3://"):
            raise ValueError(f"audit must be a folder that every worker can write to, not object storage: got {self.audit}")


class Tracker:
    """The metrics log of a run. Rows are {"position": images seen, "time": seconds since the epoch, metric: float, ...}."""

    def __init__(
        self,
        root: Location,
        config: TrackingConfig,
        resume_position: int = 0,
        labels: str = "",
        resumed: Callable[[dict[str, Any]], bool] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the rows of the existing log that belong to the resumed run, and open the trackers.

        Args:
            root: the run folder.
            resume_position: position of the checkpoint that the run continues from; 0: a new run.
            labels: name of the run, as Prometheus tag "run" and for the trackers. If "", the trackers get the URI of `root`.
            resumed: whether to keep a row of the existing log; None: keep rows up to `resume_position`.
            settings: of the run, nested, without secrets; the trackers show them.
        """
        self.file = root / FILE
        self.rows: list[dict[str, Any]] = []
        if (resume_position or resumed) and self.file.exists():
            resumed = resumed or (lambda row: bool(row["position"] <= resume_position))
            self.rows = [row for row in read_metrics(root) if resumed(row)]
        self._run = labels
        after = self.rows[-1]["position"] if self.rows else -1
        self._trackers = open_trackers(config, root, labels or root.uri, settings or {}, after)

    def add(self, position: int, metrics: dict[str, float]) -> None:
        """Add one row, and report it to the Prometheus port as `ray_reidssl_<name>` and to the trackers."""
        self.rows.append({"position": position, "time": time.time(), **metrics})
        show(self._run or self.file.parent.uri, metrics)
        for tracker in self._trackers:
            tracker.add(position, metrics)

    def publish(self) -> None:
        """Write the whole log to storage and flush the trackers."""
        self.file.write_bytes("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close the trackers; call it when the run is complete."""
        for tracker in self._trackers:
            tracker.close()


def read_metrics(root: Location) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; empty if the file does not exist.

    A broken last line without a line end is skipped: the file was copied while incomplete, and a resumed run logs the steps after
    its checkpoint again. Raises UserError for any other line that is not a row.
    """
    file, rows = root / FILE, []
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            row = None
        if isinstance(row, dict) and isinstance(row.get("position"), int):
            rows.append(row)
        elif line.endswith(b"\n"):
            raise UserError(
                f"{file.uri}, line {number}: {line[:60]!r} is not a row of metrics. Take that line out, or move the "
                "file away: training goes on without it, the report lacks its curves"
            )
    return rows


def format_row(row: dict[str, float]) -> str:
    """A row as terminal text, e.g. 'loss 6.213  lr 5.00e-04  192 images/s'."""
    words = []
    for name, value in row.items():
        if name == "images_per_second":
            words.append(f"{value:,.0f} images/s")
        elif name == "learning_rate":
            words.append(f"lr {value:.2e}")
        else:
            words.append(f"{name.replace('_', ' ')} {value:.4g}")
    return "  ".join(words)


def record_keys(folder: str, number: int, images: dict[str, Any]) -> None:
    """Append (epoch, key, CRC-32 of the pixels) of each sample of micro-batch `number` to the audit files in `folder`.

    Does nothing if `folder` is empty.
    """
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = [
            [int(epoch), str(key), zlib.crc32(image.tobytes())]
            for epoch, key, image in zip(images["epoch"], images["key"], images["image"], strict=True)
        ]
        with open(Path(folder) / f"micro-batch-{number:09d}.jsonl", "a") as file:
            file.write(json.dumps(rows) + "\n")
