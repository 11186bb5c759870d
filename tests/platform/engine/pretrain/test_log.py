"""At which steps a run logs a row, and probes."""

from types import SimpleNamespace

import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.pretrain import log
from platform.engine.pretrain.log import StepLog
from platform.engine.pretrain.place import Place
from platform.engine.runs.run_folder import Run
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
from platform.engine.train.optimizers import Schedules
from platform.engine.train.step_clock import StepClock

BATCH, STEPS = 16, 11


class CountingProbe:
    """A probe whose figure is the number of its calls."""

    def __init__(self, *_: object) -> None:
        self.calls = 0

    def __call__(self, backbone: object) -> dict[str, float]:
        self.calls += 1
        return {"probe_mAP": float(self.calls)}

    def remarks(self) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("given", "rows", "probed"),
    [
        ("probe.uri=set probe.every_steps=4", [3, 4, 6, 8, 9, 11], [4, 8, 11]),
        ("probe.uri=set probe.every_steps=6", [3, 6, 9, 11], [6, 11]),
        ("probe.every_steps=4", [3, 6, 9, 11], []),
    ],
)
def test_a_probe_runs_at_its_own_steps(tmp_path, monkeypatch, given, rows, probed):
    """They need not be steps with a log line. Without a probe, its steps do not matter."""
    monkeypatch.setattr(log, "Probe", CountingProbe)
    config = load_config(PretrainConfig, "pretrain", ["tracking.every_steps=3", "tracking.events=false", *given.split()])
    place = Place(plan=None, total=STEPS * BATCH, batch=BATCH, seen=0, rank=0, world=1, micro_batches=1)
    place.plan = SimpleNamespace(samples_per_epoch=64)
    checked = []
    learner = SimpleNamespace(
        config=config,
        place=place,
        schedules=Schedules(config.optimizer, 0.9, BATCH, 64, STEPS * BATCH),
        finite=SimpleNamespace(check=lambda: checked.append(place.step)),
        objective=SimpleNamespace(export_backbone=lambda: None),
    )
    made = StepLog(learner, Run(open_storage(str(tmp_path)), "pretrain"), StepClock())
    for _ in range(STEPS):
        place.seen += BATCH
        made.write(SimpleNamespace(terms={"loss": torch.tensor(1.0)}), SimpleNamespace(take=dict))
    assert [row["position"] // BATCH for row in made.tracker.rows] == checked == rows
    assert [row["position"] // BATCH for row in made.tracker.rows if "probe_mAP" in row] == probed
