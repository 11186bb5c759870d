"""Pre-training follows the released loop: the same losses and weights over 42 steps as a plain implementation of it.

All schedules move within these steps: warm-up and cosine of the rate, weight decay, teacher momentum and temperature, and the
frozen last layer of the first epoch.
"""

import json

import numpy as np
import pytest

from tests.platform.test_curve import spawn
from tests.tiny import PRETRAIN

RELEASED = [
    *PRETRAIN,
    "stream.micro_batch=15",
    "stream.micro_batches_per_step=1",
    "length.epochs=7",
    "clip.per_tensor=true",
    "deepspeed.zero_stage=0",
    "clip.norm=0.3",
    "model.drop_path=0",
    "optimizer.learning_rate=0.02",
    "optimizer.warmup_epochs=2",
    "objective.dino.freeze_last_layer_epochs=1",
    "objective.dino.warmup_teacher_temperature=0.04",
    "objective.dino.teacher_temperature=0.07",
    "objective.dino.warmup_teacher_temperature_epochs=3",
    "objective.dino.teacher_momentum=0.9",
    "augment.num_local=2",
    "tracking.every_steps=1",
]


@pytest.mark.parametrize("stem", ["patch", "ics"])
def test_forty_steps_are_those_of_the_released_loop(tmp_path, tiny_shards, stem):
    order = {"data": tiny_shards.uri, "overrides": [*RELEASED, f"model.stem={stem}"]}
    spawn("tests.platform.trajectory_worker", tmp_path, 1, order)
    found = json.loads((tmp_path / "trajectory.json").read_text())
    assert len(found["ours"]) == len(found["plain"]) == 42
    assert np.ptp(found["plain"]) > 0.05  # it trains
    assert found["ours"] == pytest.approx(found["plain"], rel=2e-4)
    assert max(found["differences"].values()) < 0.002 * found["moved"], found["differences"]
