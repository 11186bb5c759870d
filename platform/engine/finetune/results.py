"""What a fine-tuning run leaves: its log, its models and its summary. Only rank 0 writes them, patiently while storage fails."""

import json
from typing import Any

from platform.engine.data.shards import read_manifest
from platform.engine.finetune.cluster_warnings import run_warnings, untrained
from platform.engine.finetune.phase import Phase
from platform.engine.inference.evaluation import retrieval_metrics
from platform.engine.inference.models import REID
from platform.engine.runs.metrics import Tracker
from platform.engine.runs.run_folder import Run
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.train.checkpoints import LoadedCheckpoint
from platform.engine.train.worker import report_line
from reidssl.models.reid import ReidModel
from reidssl.models.weights import model_bytes, weights_hash


def open_tracker(run: Run, config: FinetuneConfig, found: LoadedCheckpoint | None) -> Tracker:
    """The run's log, with the rows of the epochs that the newest checkpoint contains.

    Rows are matched by phase and epoch: an epoch without training has no position of its own.
    """

    def held(row: dict[str, Any]) -> bool:
        return found is not None and (row["phase"], row["epoch"]) <= (found.payload["phase"], found.payload["epoch"])

    return Tracker(run.location, config.tracking, labels=run.location.uri, resumed=held, settings=run.settings)


def best_row(config: FinetuneConfig, tracker: Tracker | None) -> dict[str, Any] | None:
    """{"phase", "epoch", metrics} of the best evaluation that a resumed run has logged; None if there is none."""
    rows = [row for row in tracker.rows if config.keep_best in row and row["epoch"]] if tracker and config.keep_best else []
    best = max(rows, key=lambda row: row[config.keep_best], default=None)
    return None if best is None else {"phase": best["phase"], "epoch": best["epoch"], **retrieval_metrics(best)}


def publish_model(
    run: Run, config: FinetuneConfig, model: ReidModel, phase: Phase, record: dict[str, Any], name: str = REID
) -> None:
    """Write model.safetensors (or `name`) with the metadata that `load_model` reads."""
    metadata = {
        "mean": config.augment.mean,
        "std": config.augment.std,
        "neck": phase.config.neck,
        "setting": config.setting,
        "checkpoint": config.checkpoint,
        "target_set": config.target_set,
        "target_manifest": _target_checksum(config),
        "source_set": config.source_set,
        "train_sets": ", ".join(config.train_sets),
    }
    metadata |= {name: json.dumps(value) for name, value in record.items() if value is not None}
    data = model_bytes(model, metadata)
    patiently(lambda: (run.location / name).write_bytes(data), config.storage.retry_timeout_s, report_line)


def _target_checksum(config: FinetuneConfig) -> str:
    """Checksum of the target set."""
    target = open_storage(config.target_set, config.storage)
    return patiently(lambda: read_manifest(target), config.storage.retry_timeout_s, report_line).checksum


def finish(
    run: Run,
    config: FinetuneConfig,
    model: ReidModel,
    phase: Phase,
    tracker: Tracker,
    result: dict[str, Any],
    images_seen: int,
    record: dict[str, Any],
) -> None:
    """Publish the rankings, the log and the summary. The summary marks the run complete."""
    rankings, retry_s = result.pop("rankings"), config.storage.retry_timeout_s
    patiently(lambda: (run.location / "rankings.json").write_json(rankings), retry_s, report_line)
    clusters = [row for row in tracker.rows if "clusters" in row]
    patiently(tracker.publish, retry_s, report_line)
    tracker.close()
    if "camera_note" in result:
        report_line(f"note: {config.target_set}: {result['camera_note']}")
    summary = {
        "setting": config.setting,
        "checkpoint": config.checkpoint,
        "target_set": config.target_set,
        "source_set": config.source_set,
        "image_size": list(model.backbone.config.image_size),
        "seed": config.seed,
        "neck": phase.config.neck,
        "weights": weights_hash(model)[:12],
        "data_checksum": _target_checksum(config),
        "clusters": int(clusters[-1]["clusters"]) if clusters else None,
        **{name: clusters[-1][name] for name in ("adjusted_rand_index",) if clusters and name in clusters[-1]},
        "images_seen": images_seen,
        "start": next((retrieval_metrics(row) for row in tracker.rows if row["epoch"] == 0), None),
        "epochs_without_training": untrained(tracker.rows),
        "warnings": run_warnings(tracker.rows, len(phase.images)),
        **record,
        **result,
    }
    patiently(lambda: run.finish(summary), retry_s, report_line)
