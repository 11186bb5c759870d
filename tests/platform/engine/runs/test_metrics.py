"""The destinations of metrics: metrics.jsonl and trackers."""

import sys
import time

import pytest

from platform.engine.errors import UserError
from platform.engine.runs.metrics import Tracker, TrackingConfig, format_row, read_metrics
from platform.engine.storage.location import open_storage


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


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(open_storage(str(tmp_path / "run")), TrackingConfig(tensorboard=str(tmp_path / "events")))
    tracker.add(5, {"loss": 0.25})
    tracker.publish()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.25)]


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
        tracker = Tracker(root, TrackingConfig(mlflow=uri, experiment="street"))
        tracker.add(position, {"loss": position / 7, "probe_mAP": 0.5})
        tracker.publish()
    tracker.close()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("street").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == root.uri
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(10, 10 / 7), (20, 20 / 7)]


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = Tracker(open_storage(str(tmp_path / "run")), TrackingConfig(wandb="people"))
    tracker.add(5, {"loss": 0.25})
    tracker.publish()
    tracker.close()
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30  # its service process still writes after finish() has returned
    while b"loss" not in record.read_bytes():
        assert time.monotonic() < until, record.read_bytes()
        time.sleep(0.1)


def test_a_tracker_that_cannot_be_used_says_so(tmp_path, monkeypatch):
    root = open_storage(str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"tracking\.mlflow=what://ever cannot be used: .*what"):
        Tracker(root, TrackingConfig(mlflow="what://ever"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"tracking\.wandb=people needs the package wandb"):
        Tracker(root, TrackingConfig(wandb="people"))
