"""Training follows the released loops: the same losses and weights over some tens of steps as plain implementations of them.

Pre-training: all schedules move within these steps: warm-up and cosine of the rate, weight decay, teacher momentum and
temperature, and the frozen last layer of the first epoch. Fine-tuning without labels: four epochs of features, clusters, memory
and steps, with a fall of the learning rate.
"""

import json

import numpy as np
import pytest

from tests.platform.test_curve import spawn
from tests.tiny import FINETUNE, MODEL, PRETRAIN

RELEASED = [
    *PRETRAIN,
    "stream.micro_batch=15",
    "stream.micro_batches_per_step=1",
    "stream.decode_size=[96,48]",  # crops are cut from images that are larger than the model's
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


@pytest.mark.parametrize("stem", [pytest.param("patch", marks=pytest.mark.slow), "ics"])
def test_forty_steps_are_those_of_the_released_loop(tmp_path, tiny_shards, stem):
    order = {"data": tiny_shards.uri, "overrides": [*RELEASED, f"model.stem={stem}"]}
    spawn("tests.platform.trajectory_worker", tmp_path, 1, order)
    found = json.loads((tmp_path / "trajectory.json").read_text())
    assert len(found["ours"]) == len(found["plain"]) == 42
    assert np.ptp(found["plain"]) > 0.05  # it trains
    assert found["ours"] == pytest.approx(found["plain"], rel=2e-4)
    assert max(found["differences"].values()) < 0.002 * found["moved"], found["differences"]


UNLABELED = [
    *FINETUNE,
    *MODEL,
    "model.stem=patch",
    "setting=usl",
    "unsupervised.optimizer=sgd",
    "unsupervised.learning_rate=0.00035",
    "unsupervised.batch.instances=4",
    "unsupervised.decay_epochs=2",
    "unsupervised.epochs=4",
    "unsupervised.iterations=6",
    "unsupervised.drop_path=0",
    "unsupervised.batch.micro_batches=1",
]


@pytest.mark.parametrize(
    "teacher",
    [[], pytest.param(["unsupervised.ema_momentum=0.7", "unsupervised.teacher_weight=0.4"], marks=pytest.mark.slow)],
    ids=["released", "mmt"],
)
def test_four_epochs_without_labels_are_those_of_the_released_loop(tmp_path, tiny_labeled, teacher):
    """With a mean teacher, too."""
    order = {"data": tiny_labeled.uri, "overrides": [*UNLABELED, *teacher]}
    spawn("tests.platform.cluster_contrast_worker", tmp_path, 1, order)
    found = json.loads((tmp_path / "trajectory.json").read_text())
    assert all(found["same_labels"]) and len(found["same_labels"]) == 4 and min(found["clusters"]) > 1
    assert len(found["ours"]) == len(found["plain"]) == 24
    assert np.ptp(found["plain"]) > 0.05  # it trains
    # The neck divides by the spread of 16 features, which enlarges rounding from step to step: 1e-6 after 3, 1e-3 after 20.
    assert found["ours"][:3] == pytest.approx(found["plain"][:3], rel=1e-5)
    assert found["ours"] == pytest.approx(found["plain"], rel=5e-3)
    assert found["difference"] < 2e-3
