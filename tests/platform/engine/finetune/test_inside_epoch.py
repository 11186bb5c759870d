"""The progress inside an epoch: means over its parts, and its way through a checkpoint."""

import io

import numpy as np
import pytest
import torch

from platform.engine.finetune.inside_epoch import Progress
from platform.engine.finetune.phase import Epoch
from platform.engine.train.step import StepMeans


def test_the_means_of_the_parts_are_those_of_the_whole_epoch():
    batches = [np.array([4, 1]), np.array([0, 2]), np.array([3, 5])]
    progress = Progress(Epoch(batches, np.array([0, 1, -1, 0, 1, 1]), {"clusters": 2}, ["doubtful"]))
    means, losses = StepMeans[str](), [3.0, 5.0, 1.0]
    for loss in losses[:2]:
        means.add({"loss": torch.tensor(loss)})
    progress.add(means, 2)
    file = io.BytesIO()
    torch.save(progress.state(), file)
    file.seek(0)
    again = Progress.of(torch.load(file, weights_only=True))
    assert again.step == 2 and all((one == other).all() for one, other in zip(again.work.batches, batches, strict=True))
    assert (again.work.labels == progress.work.labels).all() and again.work.log == {"clusters": 2}
    assert again.work.warnings == ["doubtful"]
    means.add({"loss": torch.tensor(losses[2])})
    again.add(means, 3)
    assert again.means()["loss"] == pytest.approx(np.mean(losses)) and again.step == 3
    assert Progress(Epoch([], np.array([-1]), {})).means() == {}
