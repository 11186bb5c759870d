"""Optuna's points: better than chance, stored, continued, never repeated."""

import json

import pytest

from platform.engine.storage.location import open_storage
from platform.engine.sweep.draws import Draw
from platform.engine.sweep.suggestions import Searcher, Suggestions
from platform.engine.sweep.trials import PointBook

DRAWS = {"seed": Draw("choice", (0, 1)), "supervised.learning_rate": Draw("log_uniform", (1e-6, 1e-1))}


def metric_of(point: dict) -> float:
    """Best at a learning rate of 1e-3."""
    import math

    return 1 - abs(math.log10(point["supervised.learning_rate"]) + 3) / 10


def run(search: Suggestions, number: int, fails: bool = False) -> list[dict]:
    found = []
    for trial in range(number):
        name = f"{id(search)}-{trial}"
        point = json.loads(search.suggest(name)["point"])
        result = {"mAP": metric_of(point), "training_iteration": 1, "reason": "diverged" if fails else ""}
        search.on_trial_result(name, result)
        search.on_trial_complete(name, result)
        found.append(point)
    return found


def test_it_learns_from_results_and_never_repeats_a_point(tmp_path):
    book = PointBook(open_storage(str(tmp_path)))
    found = run(Suggestions("mAP", 0, DRAWS, book, {}), 40)
    late = [metric_of(point) for point in found[25:]]
    assert sum(late) / len(late) > 0.91  # uniform draws: 0.87
    assert len({json.dumps(point) for point in found}) == 40
    assert json.loads((tmp_path / "points.json").read_text()) == found == book.points


def test_a_continued_search_runs_the_open_points_first_and_knows_the_results(tmp_path):
    book = PointBook(open_storage(str(tmp_path)))
    first = run(Suggestions("mAP", 0, DRAWS, book, {}), 25)
    done = {json.dumps(point): metric_of(point) for point in first[:22]}
    search = Suggestions("mAP", 0, DRAWS, PointBook(book.file.parent), done)
    assert search.waiting == first[22:]
    again = run(search, 15)
    assert again[:3] == first[22:] and not any(point in first for point in again[3:])
    assert sum(map(metric_of, again[3:])) / 12 > 0.9


def test_the_search_ends_when_every_point_was_tried(tmp_path):
    draws = {"seed": Draw("choice", (0, 1, 2))}
    search = Suggestions("mAP", 0, draws, PointBook(open_storage(str(tmp_path))), {})
    for number in range(3):
        search.suggest(str(number))
        search.on_trial_complete(str(number), {"mAP": 0.5, "reason": ""})
    assert search.suggest("more") == Searcher.FINISHED and len(search.book.points) == 3


def test_failures_teach_nothing(tmp_path):
    search = Suggestions("mAP", 0, DRAWS, PointBook(open_storage(str(tmp_path))), {})
    run(search, 3, fails=True)
    states = [trial.state.name for trial in search._optuna._ot_study.trials]
    assert states == ["FAIL"] * 3
    with pytest.raises(ValueError, match="No trials are completed"):
        search._optuna._ot_study.best_trial  # noqa: B018
