"""Failures while a model is fine-tuned: storage that fails for a while costs time, and no result."""

from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.train.checkpoints import CheckpointStore
from tests.platform.survival import FaultyProxy
from tests.platform.test_curve import spawn
from tests.tiny import MODEL


def test_storage_that_refuses_every_first_write(tmp_path, tiny_labeled, s3):
    """The log, the checkpoint, both models, the rankings and the summary are refused once each; the run ends as if it had not."""
    direct = StorageConfig(endpoint_url=s3.endpoint_url)
    server = FaultyProxy(s3.endpoint_url)
    overrides = [
        *MODEL,
        "supervised.epochs=1",
        "evaluate_start=true",
        "evaluate_every=1",
        "keep_best=mAP",
        f"output={s3.uri}/run",
        f"storage.endpoint_url={server.url}",
        "storage.max_attempts=1",
        "storage.retry_timeout_s=60",
        "tracking.events=false",
    ]
    try:
        server.mode = "once"
        spawn("tests.platform.finetune_worker", tmp_path, 1, {"world": 1, "data": tiny_labeled.uri, "runs": [["run", overrides]]})
    finally:
        server.close()
    run = open_storage(f"{s3.uri}/run", direct)
    left = [item.name for item in run.list()]
    assert {path.removeprefix(f"/{s3.bucket}/run/") for path in server.refused} == set(left)
    assert {"metrics.jsonl", "best.safetensors", "model.safetensors", "rankings.json", "summary.json"} < set(left)
    assert [row["epoch"] for row in read_metrics(run)] == [0, 1] and (run / "summary.json").read_json()["images_seen"] > 0
    found = CheckpointStore(run / "checkpoints").newest()
    assert found is not None and found.payload["epoch"] == 1 and found.torn == ()
