"""The one place where metrics leave a run: `metrics.jsonl` beside it, Ray's Prometheus port, and trackers by wish.

Written by rank 0 alone. Object storage cannot append, so the log is kept in memory (one small dict an interval) and
published whole; a resumed run continues the log up to its checkpoint. Trackers (platform/engine/runs/trackers.py) are told the
same rows; what a crash made a run log twice stands twice in them, and once in `metrics.jsonl`.
"""

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platform.engine.config.paths import OutputPath, ServiceAddress
from platform.engine.errors import UserError
from platform.engine.runs.trackers import open_trackers
from platform.engine.storage.location import Location
from reidssl.checks import at_least

FILE = "metrics.jsonl"


@dataclass(kw_only=True)
class TrackingConfig:
    """How often a run speaks and to whom."""

    every_steps: int = 20
    """Optimizer steps between log lines."""
    tensorboard: OutputPath = ""
    """Local folder for TensorBoard event files; empty: none."""
    wandb: str = ""
    """Weights & Biases project; empty: none. The key comes from `wandb login` or WANDB_API_KEY on the worker's node."""
    mlflow: ServiceAddress = ""
    """MLflow tracking URI (http://host:5000, sqlite:///file.db); empty: none. Credentials: MLFLOW_TRACKING_* variables."""
    experiment: str = "reidssl"
    """MLflow's experiment."""
    audit: OutputPath = ""
    """Folder that every worker can write to: epoch, key and pixels' CRC-32 of each sample that was computed; empty: none."""

    def __post_init__(self) -> None:
        at_least(1, every_steps=self.every_steps)
        if self.audit.startswith("s3://"):
            raise ValueError(f"audit must be a folder that every worker can write to, not object storage: got {self.audit}")


class Tracker:
    """Collects rows {"position": images seen, metric: float, ...}."""

    def __init__(
        self,
        root: Location,
        config: TrackingConfig,
        resume_position: int = 0,
        labels: str = "",
        resumed: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        """resumed: which rows of the log so far to go on from, where the position does not tell; None: those up to
        `resume_position`."""
        self.file = root / FILE
        self.rows: list[dict[str, Any]] = []
        if (resume_position or resumed) and self.file.exists():
            resumed = resumed or (lambda row: bool(row["position"] <= resume_position))
            self.rows = [row for row in read_metrics(root) if resumed(row)]
        self._gauges: dict[str, Any] = {}
        self._run = labels
        self._trackers = open_trackers(config, labels or root.uri)

    def add(self, position: int, metrics: dict[str, float]) -> None:
        """One row; also to the Prometheus port as `ray_reidssl_<name>` and to the trackers."""
        self.rows.append({"position": position, "time": time.time(), **metrics})
        for name, value in metrics.items():
            self._gauge(name).set(value, {"run": self._run})
        for tracker in self._trackers:
            tracker.add(position, metrics)

    def publish(self) -> None:
        """Write the whole log to storage."""
        self.file.write_bytes("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """The run is complete: tell the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            safe = "".join(char if char.isalnum() else "_" for char in name)
            self._gauges[name] = Gauge(f"reidssl_{safe}", description=f"re-ID training: {name}", tag_keys=("run",))
        return self._gauges[name]


def read_metrics(root: Location) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, empty if it has none.

    A last line without its end is left out: a copy was cut there, and a resumed run logs what follows its checkpoint anew.
    Raises UserError for any other line that is not a row.
    """
    file, rows = root / FILE, []
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # no JSON, or not even UTF-8
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
    """'loss 6.213  lr 0.0005  192 images/s' for a terminal."""
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
    """Append (epoch, key, CRC-32 of the pixels) of each sample of micro-batch `number` to the audit, if there is to be one."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = [
            [int(epoch), str(key), zlib.crc32(image.tobytes())]
            for epoch, key, image in zip(images["epoch"], images["key"], images["image"], strict=True)
        ]
        with open(Path(folder) / f"micro-batch-{number:09d}.jsonl", "a") as file:
            file.write(json.dumps(rows) + "\n")
