"""The destinations of metrics: metrics.jsonl and trackers."""

import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from platform.engine.errors import UserError
from platform.engine.runs.metrics import Tracker, TrackingConfig, format_row, read_metrics
from platform.engine.storage.location import StorageConfig, open_storage


def test_rows_are_published_and_continued_up_to_the_checkpoint(tmp_path):
    root = open_storage(str(tmp_path))
    assert read_metrics(root) == []
    tracker = Tracker(root, TrackingConfig(), labels="run")
    for position in (10, 20, 30):
        tracker.add(position, {"loss": position / 7, "probe_mAP": 0.1})
    assert read_metrics(root) == []  # a half-written file never exists
    tracker.publish()
    rows = read_metrics(root)
    assert [row["position"] for row in rows] == [10, 20, 30] and rows[0]["loss"] == 10 / 7 and rows[0]["time"] > 0
    again = Tracker(root, TrackingConfig(), resume_position=20)
    again.add(30, {"loss": 1.0})
    again.publish()
    assert [(row["position"], row["loss"]) for row in read_metrics(root)] == [(10, 10 / 7), (20, 20 / 7), (30, 1.0)]
    fresh = Tracker(root, TrackingConfig())
    assert fresh.rows == []  # started over: the old log is dropped


def test_a_log_that_was_cut_or_is_somebody_elses(tmp_path):
    """A cut last line is ignored, also by the resumed run; the error for any other bad line names it."""
    root, file = open_storage(str(tmp_path)), tmp_path / "metrics.jsonl"
    rows = b'{"position": 10, "loss": 0.5}\n{"position": 20, "loss": 0.25}\n'
    for cut in (b'{"position": 30, "lo', b"{", b'{"name": "\xc3', b"3"):
        file.write_bytes(rows + cut)
        assert [row["position"] for row in read_metrics(root)] == [10, 20]
    tracker = Tracker(root, TrackingConfig(), resume_position=20)
    tracker.add(30, {"loss": 0.125})
    tracker.publish()
    assert [row["position"] for row in read_metrics(root)] == [10, 20, 30]
    for bad in (b"torn\n", b"[1, 2]\n", b'{"loss": 0.5}\n', b"\n"):
        file.write_bytes(rows[:30] + bad + rows[30:])
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: .* is not a row of metrics\. Take that line out"):
            read_metrics(root)


def events_of(folder) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar that TensorBoard shows for a folder, and under "settings" the texts."""
    found = EventAccumulator(str(folder))
    found.Reload()
    shown = {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    return shown | {"settings": [event.tensor_proto.string_val[0].decode() for event in found.Tensors("settings/text_summary")]}


def test_tensorboard_shows_a_resumed_run_once_with_its_settings(tmp_path, s3):
    """Below the run folder, also in object storage; or in another folder, or nowhere."""
    settings = {"optimizer": {"learning_rate": 0.5, "name": "adamw"}, "output": "x"}
    for root in (
        open_storage(str(tmp_path / "run")),
        open_storage(f"{s3.uri}/board", StorageConfig(endpoint_url=s3.endpoint_url)),
    ):
        for position in (0, 10):
            tracker = Tracker(root, TrackingConfig(), resume_position=position, settings=settings)
            for ahead in (10, 20):
                tracker.add(position + ahead, {"loss": position + ahead / 64})
                tracker.publish()
        tracker.close()
        folder = tmp_path / "seen" if root.is_s3 else tmp_path / "run" / "tensorboard"
        if root.is_s3:
            folder.mkdir()
            for file in (root / "tensorboard").list():
                (folder / file.name).write_bytes((root / "tensorboard" / file.name).read_bytes())
        found = events_of(folder)
        assert found["loss"] == [(10, 10 / 64), (20, 10 + 10 / 64), (30, 10 + 20 / 64)]
        assert "optimizer.learning_rate: 0.5" in found["settings"][-1]
    chosen = Tracker(open_storage(str(tmp_path / "other")), TrackingConfig(tensorboard=str(tmp_path / "events")))
    chosen.add(5, {"loss": 0.25})
    chosen.publish()
    assert events_of(tmp_path / "events")["loss"] == [(5, 0.25)]
    silent = Tracker(open_storage(str(tmp_path / "silent")), TrackingConfig(events=False))
    silent.add(5, {"loss": 0.25})
    silent.publish()
    assert [item.name for item in (tmp_path / "silent").iterdir()] == ["metrics.jsonl"]


def test_a_row_for_the_terminal():
    row = {"loss": 6.2134567, "learning_rate": 0.0005, "images_per_second": 1234.5, "teacher_entropy": 2.0}
    assert format_row(row) == "loss 6.213  lr 5.00e-04  1,234 images/s  teacher entropy 2"


def test_impossible_settings():
    with pytest.raises(ValueError, match=r"^every_steps must be at least 1: got 0"):
        TrackingConfig(every_steps=0)


@pytest.mark.filterwarnings("ignore")  # of mlflow and its database
def test_mlflow_continues_the_entry_of_the_same_run(tmp_path):
    from mlflow.tracking import MlflowClient

    root, uri = open_storage(str(tmp_path / "it's a run")), f"sqlite:///{tmp_path}/mlflow.db"
    for position in (10, 20):  # the second is the resumed run
        settings = {"optimizer": {"name": "adamw"}, "epochs": position, "probe": {}, **{f"x{i}": i for i in range(150)}}
        tracker = Tracker(root, TrackingConfig(mlflow=uri, experiment="street"), settings=settings)
        tracker.add(position, {"loss": position / 7, "probe_mAP": 0.5})
        tracker.publish()
    tracker.close()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("street").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == root.uri
    given = run.data.params  # those with which it began
    assert given["optimizer.name"] == "adamw" and given["epochs"] == "10" and given["probe"] == "{}" and given["x149"] == "149"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(10, 10 / 7), (20, 20 / 7)]


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    settings = {"optimizer": {"name": "adamw-as-planned"}}
    tracker = Tracker(open_storage(str(tmp_path / "run")), TrackingConfig(wandb="people"), settings=settings)
    tracker.add(5, {"loss": 0.25})
    tracker.publish()
    tracker.close()
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30  # its service process still writes after finish() has returned
    while any(word not in record.read_bytes() for word in (b"loss", b"adamw-as-planned")):
        assert time.monotonic() < until, record.read_bytes()
        time.sleep(0.1)


def test_a_tracker_that_cannot_be_used_says_so(tmp_path, monkeypatch):
    root = open_storage(str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"tracking\.mlflow=what://ever cannot be used: .*what"):
        Tracker(root, TrackingConfig(mlflow="what://ever"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"tracking\.wandb=people needs the package wandb"):
        Tracker(root, TrackingConfig(wandb="people"))
