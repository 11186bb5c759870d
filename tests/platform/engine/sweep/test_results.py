"""The table of a sweep, its means over seeds, and its Parquet file."""

import statistics

import pyarrow.parquet as pq
import pytest

from platform.engine.schemas.tune_settings import METRICS
from platform.engine.storage.location import open_storage
from platform.engine.sweep.results import best_of, table, write_results


def row(point: dict, value: float | None, state: str = "finished", **more) -> dict:
    metrics = {} if value is None else {name: value for name in METRICS}
    return {**point, "point": point, "state": state, "reason": "", "clusters": 7, "seed": 0, "folder": "x", **metrics, **more}


SEEDS = [
    row({"seed": seed, "a.eps": eps}, value)
    for eps, values in {0.4: (0.5, 0.6), 0.5: (0.1, 0.9)}.items()
    for seed, value in enumerate(values)
]


def test_means_and_spread_over_seeds():
    printed = table(SEEDS, "mAP").splitlines()
    assert len(printed) == 3 and printed[0].split() == ["eps", *METRICS, "seeds", "clusters"]
    assert f"55.0 ± {100 * statistics.stdev((0.5, 0.6)):.1f}" in printed[1] and "50.0 ± 56.6" in printed[2]
    assert best_of(SEEDS, "mAP")["point"] == {"seed": 1, "a.eps": 0.4}  # not the luckiest seed, 0.9


def test_a_setting_does_not_win_by_the_seeds_that_were_stopped():
    stopped = [row({"seed": seed, "a.eps": 0.6}, value, "stopped early") for seed, value in ((1, 0.4), (2, 0.42))]
    rows = [row({"seed": 0, "a.eps": 0.6}, 0.95), *stopped, *SEEDS]
    assert best_of(rows, "mAP")["point"] == {"seed": 1, "a.eps": 0.4}


def test_without_seeds_a_line_is_a_trial():
    rows = [row({"a.eps": 0.1 * n, "b.eps": [1, 2]}, 0.01 * n) for n in range(1, 31)]
    printed = table(rows, "mAP").splitlines()
    assert printed[0].split()[:2] == ["a.eps", "b.eps"] and printed[1].split()[0] == "3" and "±" not in printed[1]
    assert len(printed) == 22 and printed[-1] == "... and 10 more in trials.parquet"


def test_a_stopped_trial_is_shown_and_never_best():
    rows = [
        row({"a": 1}, 0.9, "stopped early", reason="stopped after epoch 2"),
        row({"a": 2}, 0.5),
        row({"a": 3}, None, "failed"),
    ]
    assert "stopped after epoch 2" in table(rows, "mAP") and best_of(rows, "mAP")["a"] == 2
    assert best_of(rows[::2], "mAP") is None and table(rows[2:], "mAP") == "no trial is finished"


def test_the_parquet_file_has_a_row_per_trial(tmp_path):
    rows = [
        row({"rate": 1e-3, "size": [64, 32], "mixed": 1}, 0.5, start={"mAP": 0.25}),
        row({"rate": 1, "size": [128, 64], "mixed": "a"}, None, "failed", reason="diverged"),
    ]
    write_results(open_storage(str(tmp_path)), rows)
    found = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [each["rate"] for each in found] == [1e-3, 1.0] and [each["size"] for each in found] == ["[64, 32]", "[128, 64]"]
    assert [each["mixed"] for each in found] == ["1", '"a"'] and [each["mAP"] for each in found] == [0.5, None]
    assert found[0]["start_mAP"] == 0.25 and found[1]["reason"] == "diverged" and found[1]["state"] == "failed"


@pytest.mark.parametrize("count", [1, 3])
def test_one_value_has_no_spread(count):
    assert ("±" in table([row({"seed": seed}, 0.5) for seed in range(count)], "mAP")) == (count > 1)
