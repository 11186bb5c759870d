"""Population based training: where new points lie, and what a new trial begins with."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from platform.engine.errors import StorageError
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import open_storage
from platform.engine.sweep.draws import Draw
from platform.engine.sweep.population import FACTORS, Population, continue_from, mutated, newest_checkpoint
from platform.engine.sweep.trials import PointBook, folder_of
from platform.engine.train.checkpoints import CheckpointStore

DRAWS = {
    "supervised.learning_rate": Draw("log_uniform", (1e-4, 1e-2)),
    "supervised.label_smoothing": Draw("choice", (0.0, 0.1, 0.2)),
    "unsupervised.iterations": Draw("integer", (10, 40)),
}
POINT = {"supervised.learning_rate": 1e-3, "supervised.label_smoothing": 0.1, "unsupervised.iterations": 20}


def test_new_points_lie_beside_the_old_one_or_are_drawn_anew():
    generator = np.random.default_rng(0)
    known = [mutated(POINT, DRAWS, generator, [POINT]) for _ in range(300)]
    assert POINT not in known and mutated(POINT, DRAWS, generator, known) not in known
    rates = [point["supervised.learning_rate"] for point in known]
    small = {"unsupervised.iterations": Draw("integer", (1, 3))}
    points = [{"unsupervised.iterations": number} for number in (1, 2, 3)]
    assert mutated(points[0], small, generator, points[:2]) == points[2] and mutated(points[0], small, generator, points) is None
    beside = sum(rate in [1e-3 * factor for factor in FACTORS] for rate in rates)
    assert 180 < beside < 270 and min(rates) >= 1e-4 and max(rates) <= 1e-2  # three quarters are expected
    assert {point["supervised.label_smoothing"] for point in known} == {0.0, 0.1, 0.2}
    assert {16, 25} < {point["unsupervised.iterations"] for point in known}
    for end, value in ((1e-2, 1.0), (1e-4, 0.0)):
        near = [Draw("log_uniform", (1e-4, 1e-2)).beside(end, FACTORS, generator) for _ in range(20)]
        assert end in near and all(1e-4 <= rate <= 1e-2 for rate in near), value
    assert {Draw("integer", (1, 3)).beside(1, FACTORS, generator) for _ in range(20)} == {1, 2}


def test_a_new_trial_has_the_checkpoint_and_the_log_of_another(tmp_path):
    donor, folder = (open_storage(str(tmp_path / name)) for name in ("donor", "new"))
    CheckpointStore(donor / "checkpoints").save(5, {"weights": torch.arange(3)}, {"seen": 5})
    (donor / "metrics.jsonl").write_text("{}")
    (donor / "config.json").write_text("{}")
    continue_from(donor, folder)
    assert {item.name.partition("/")[0] for item in folder.list()} == {"checkpoints", "metrics.jsonl"}
    found = newest_checkpoint(folder)
    assert found.position == 5 and found.payload["weights"].tolist() == [0, 1, 2] and found.metadata == {"seen": 5}


def test_without_a_whole_checkpoint_nothing_is_continued(tmp_path):
    donor, folder = (open_storage(str(tmp_path / name)) for name in ("donor", "new"))
    (donor / "metrics.jsonl").write_text("{}")
    assert newest_checkpoint(donor) is None
    with pytest.raises(StorageError, match="donor has no whole checkpoint to continue from"):
        continue_from(donor, folder, attempts=1)
    CheckpointStore(donor / "checkpoints").save(5, {"weights": torch.arange(3)}, {})
    state = next(item.name for item in donor.list() if item.name.endswith("state.pt"))
    (donor / state).write_bytes(b"torn")  # as while the trial replaces it
    assert newest_checkpoint(donor) is None
    with pytest.raises(StorageError, match="has no whole checkpoint"):
        continue_from(donor, folder, attempts=1)


def test_a_trial_does_not_continue_from_one_without_a_checkpoint(tmp_path):
    space = {"unsupervised": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}}
    config = TuneConfig(output=str(tmp_path), finetune=FinetuneConfig(output="", setting="usl", target_set="x"), space=space)
    book = PointBook(open_storage(str(tmp_path)))
    book.add([{"unsupervised.learning_rate": rate} for rate in (1e-3, 2e-3)])
    (folder_of(config, book.points[1]) / "metrics.jsonl").write_text("{}")
    trial, young = (SimpleNamespace(config={"point": json.dumps(point)}) for point in book.points)
    Population(config, book, "evaluation")._exploit(None, trial, young)
    assert len(book.points) == 2


def test_a_trial_does_not_continue_from_one_that_has_ended(tmp_path):
    space = {"unsupervised": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}}
    config = TuneConfig(output=str(tmp_path), finetune=FinetuneConfig(output="", setting="usl", target_set="x"), space=space)
    book = PointBook(open_storage(str(tmp_path)))
    book.add([{"unsupervised.learning_rate": rate} for rate in (1e-3, 2e-3)])
    (folder_of(config, book.points[1]) / SUMMARY).write_json({})
    trial, ended = (SimpleNamespace(config={"point": json.dumps(point)}) for point in book.points)
    Population(config, book, "evaluation")._exploit(None, trial, ended)
    assert len(book.points) == 2
