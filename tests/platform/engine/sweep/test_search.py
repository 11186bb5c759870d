"""The schedulers that stop trials: a trial that failed is no measure for the others."""

from types import SimpleNamespace

import pytest

from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import open_storage
from platform.engine.sweep.search import STEP, scheduler_of
from platform.engine.sweep.trials import PointBook

CONTROLLER = SimpleNamespace(get_live_trials=list)
GOOD = [0.6, 0.55, 0.5, 0.45, 0.4, 0.35]


def decisions(name: str, failures: int, tmp_path) -> list[str]:
    """What the scheduler says to trials with the metrics of GOOD, after trials that failed at their first step."""
    tuned = FinetuneConfig(output="", setting="usl", target_set="x", evaluate_every=1)
    config = TuneConfig(output=str(tmp_path), finetune=tuned, space={"unsupervised": {"cluster": {"eps": [0.4, 0.5]}}})
    config.scheduler.name, config.scheduler.min_trials = name, 2
    scheduler = scheduler_of(config, PointBook(open_storage(str(tmp_path))))
    scheduler.set_search_properties("mAP", "max")
    trials = [Trial(number) for number in range(failures + len(GOOD))]
    for trial in trials:
        scheduler.on_trial_add(CONTROLLER, trial)
    for trial in trials[:failures]:
        failed = {"mAP": -1.0, STEP: 1, "reason": "diverged"}
        assert scheduler.on_trial_result(CONTROLLER, trial, failed) == scheduler.CONTINUE
        scheduler.on_trial_complete(CONTROLLER, trial, failed)
    return [
        scheduler.on_trial_result(CONTROLLER, trial, {"mAP": value, STEP: 1, "reason": ""})
        for trial, value in zip(trials[failures:], GOOD, strict=True)
    ]


class Trial:
    """What a scheduler reads of a trial of Tune."""

    status = "RUNNING"

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_failed_trials_change_nothing(name, tmp_path):
    without = decisions(name, 0, tmp_path / "a")
    assert "STOP" in without and decisions(name, 3, tmp_path / "b") == without
