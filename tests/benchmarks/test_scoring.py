"""Both sides of the scoring benchmark compute the same scores."""

import pytest

from benchmarks import scoring_sides as scoring
from benchmarks.people import write_shards
from benchmarks.scoring import SIZES

TINY = SIZES["tiny"]


@pytest.mark.slow  # runs two programs for the benchmark alone
def test_the_sides_compute_the_same_scores(tmp_path, ray_session):
    scoring.make_models(str(tmp_path), TINY)
    write_shards(f"{tmp_path}/shards", "[64,32]", 48, "row_group_rows=16", "raw.synthetic.pretrain_scenes=4")
    common = {"folder": str(tmp_path), "data": "shards", "rows": 16, "size": [64, 32]}
    means = [scoring.loop(common | {"decoded": decoded})[0]()["mean"] for decoded in (False, True)]
    work, check = scoring.ours(common)
    assert means[0] == means[1] == pytest.approx(check(work())["mean"], abs=1e-5)
    for models in (1, 2):
        assert scoring.actors(common | {"models": models})[0]()["images"] == 48


def test_the_rate_leaves_the_start_out():
    pieces = [(100.0 + number, 10) for number in range(16)]
    assert scoring.rate_of(pieces) == {"rate": pytest.approx(10.0), "seconds": 14.0, "images": 160}
    assert scoring.rate_of([(5.0, 10)])["rate"] is None  # one piece has no rate
