"""The tables of the study, from results."""

from pathlib import Path

import pytest

from benchmarks.cfs_study import chart, config_of, spread, table

FRACTIONS = [0.25, 0.5]


def results(shift: float) -> dict[str, dict[str, float]]:
    found = {"full": {"mAP": 0.2 + shift}}
    for place, label in enumerate(f"{kind}-{fraction:g}" for kind in ("cfs", "random", "inverse") for fraction in FRACTIONS):
        found[label] = {"mAP": 0.3 - 0.01 * place + shift, "planted": 0.1}
    return found


def test_mean_and_standard_deviation_over_seeds():
    found = [results(0.0), results(0.02), results(0.04)]
    assert spread(found, "mAP")["cfs-0.25"] == (pytest.approx(0.32), pytest.approx(0.02))
    assert "full" not in spread(found, "planted")
    lines = table(found, FRACTIONS, "mAP").splitlines()
    assert lines[0] == "| images | 25% | 50% |" and lines[3] == "| random | 30.0 ± 2.0 | 29.0 ± 2.0 |"
    assert lines[-1] == "All images: 22.0 ± 2.0" and "All images" not in table(found, FRACTIONS, "planted")
    assert spread(found[:1], "mAP")["full"] == (0.2, 0.0)
    assert chart(found, FRACTIONS).count("<polyline") + chart(found, FRACTIONS).count("<path") >= 3


@pytest.mark.parametrize(("given", "objective", "strength"), [([], "dino", 0.2), (["experiment=demo_moco"], "moco_v3", 0.4)])
def test_the_recipe_can_be_another_experiment(tmp_path, given, objective, strength):
    config = config_of(Path(tmp_path), 3, 640, given)
    assert (config.pretrain.objective.name, config.target_set.synthetic.camera_strength) == (objective, strength)
    assert config.seed == 3 and config.target_set.synthetic.seed == 3 and config.pretrain.length.samples == 640
