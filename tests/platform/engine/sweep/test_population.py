"""Population based training: where new points lie, and what a new trial begins with."""

import json
from types import SimpleNamespace

import numpy as np

from platform.engine.runs.run_folder import SUMMARY
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import open_storage
from platform.engine.sweep.draws import Draw
from platform.engine.sweep.population import FACTORS, Population, continue_from, mutated
from platform.engine.sweep.trials import PointBook, folder_of

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
    (donor / "checkpoints" / "position-5" / "state").write_bytes(b"weights")
    (donor / "metrics.jsonl").write_text("{}")
    (donor / "config.json").write_text("{}")
    continue_from(donor, folder)
    assert sorted(item.name for item in folder.list()) == ["checkpoints/position-5/state", "metrics.jsonl"]
    assert (folder / "checkpoints" / "position-5" / "state").read_bytes() == b"weights"


def test_a_trial_does_not_continue_from_one_that_has_ended(tmp_path):
    space = {"unsupervised": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}}
    config = TuneConfig(output=str(tmp_path), finetune=FinetuneConfig(output="", setting="usl", target_set="x"), space=space)
    book = PointBook(open_storage(str(tmp_path)))
    book.add([{"unsupervised.learning_rate": rate} for rate in (1e-3, 2e-3)])
    (folder_of(config, book.points[1]) / SUMMARY).write_json({})
    trial, ended = (SimpleNamespace(config={"point": json.dumps(point)}) for point in book.points)
    Population(config, book, "evaluation")._exploit(None, trial, ended)
    assert len(book.points) == 2
