"""Sweeps: the grid, and one through real Ray Tune with real Ray Train runs in it."""

import json

import pytest

from platform.engine.config import ConfigError, load_config
from platform.engine.errors import UserError
from platform.tune import TuneConfig, flat, grid, main
from tests.fixtures_runs import TINY_FINETUNE


def config_of(target, init, output, *overrides: str) -> TuneConfig:
    common = [f"finetune.{override}" for override in [f"target={target}", f"init={init}", *TINY_FINETUNE]]
    return load_config(TuneConfig, "tune", [f"output={output}", *common, "finetune.unsupervised.epochs=1",
                                            "finetune.unsupervised.iterations=2", *overrides])


SPACE = "+space.unsupervised.cluster={eps:[0.5,0.8]}"


def test_a_sweep_runs_every_point_and_is_read_the_second_time(tmp_path, ray_session, tiny_backbone, tiny_labelled, capsys):
    output = tmp_path / "sweep"
    config = config_of(tiny_labelled.uri, tiny_backbone, output, SPACE, "metric=rank1")
    found = main(config)
    assert sorted(row["unsupervised.cluster.eps"] for row in found["trials"]) == [0.5, 0.8]
    assert found["best"] in found["trials"] and found["best"]["rank1"] == max(row["rank1"] for row in found["trials"])
    folders = {json.loads((folder / "config.json").read_text())["config"]["unsupervised"]["cluster"]["eps"]: folder
               for folder in (output / "trials").iterdir()}
    assert set(folders) == {0.5, 0.8}
    for row in found["trials"]:  # every trial is a fine-tuning run of its own
        summary = json.loads((folders[row["unsupervised.cluster.eps"]] / "summary.json").read_text())
        assert summary["setting"] == "usl" and (summary["clusters"] or 0) == row["clusters"]
        assert {name: summary[name] for name in ("mAP", "rank1", "mINP")} == {n: row[n] for n in ("mAP", "rank1", "mINP")}
    printed = capsys.readouterr().out
    assert "2 trials, 1 at a time" in printed and printed.count("usl unsupervised epoch 1/1") == 2
    when = {eps: (folder / "summary.json").stat().st_mtime_ns for eps, folder in folders.items()}
    assert main(config_of(tiny_labelled.uri, tiny_backbone, output, SPACE, "metric=rank1")) == found
    assert "is complete already" in capsys.readouterr().out
    # Interrupted before its end: finished trials are read, not trained again.
    (output / "summary.json").unlink()
    assert main(config_of(tiny_labelled.uri, tiny_backbone, output, SPACE, "metric=rank1"))["best"] == found["best"]
    assert when == {eps: (folder / "summary.json").stat().st_mtime_ns for eps, folder in folders.items()}


def test_the_grid_is_every_combination(tmp_path):
    config = config_of("shards", "model", tmp_path, "+space={unsupervised:{cluster:{eps:[0.4,0.5],k1:[20,30]},epochs:[3]}}")
    found = grid(config)
    assert len(found) == 4 and {tuple(sorted(point)) for point in found} == {
        ("unsupervised.cluster.eps", "unsupervised.cluster.k1", "unsupervised.epochs")}
    assert {(point["unsupervised.cluster.eps"], point["unsupervised.cluster.k1"]) for point in found} == {
        (0.4, 20), (0.4, 30), (0.5, 20), (0.5, 30)}
    assert len(grid(config_of("shards", "model", tmp_path))) == 4  # the default: eps of the clustering


@pytest.mark.parametrize(("space", "message"), [
    ("{unsupervised:{cluster:{epsilon:[0.4]}}}", r"'unsupervised.cluster.epsilon' is no setting of platform.finetune"),
    ("{unsupervized:{epochs:[1]}}", r"'unsupervized.epochs' is no setting of platform.finetune"),
    ("{unsupervised:{epochs:3}}", r"space.unsupervised.epochs must be a list of values to try.*got 3"),
    ("{unsupervised:{epochs:[]}}", r"space.unsupervised.epochs must be a list"),
    ("{unsupervised:{cluster:{eps:[0.5,1.5]}}}", r"eps must be in \(0, 1\): got 1.5"),
    ("{unsupervised:{epochs:[often]}}", r"unsupervised.epochs"),
])
def test_a_wrong_space_is_refused_before_anything_runs(tmp_path, tiny_labelled, tiny_backbone, space, message):
    with pytest.raises(UserError, match=message):
        main(config_of(tiny_labelled.uri, tiny_backbone, tmp_path / "sweep", f"+space={space}"))
    assert not (tmp_path / "sweep").exists()


def test_wrong_paths_are_refused_before_anything_runs(tmp_path, tiny_labelled, tiny_backbone):
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of(tiny_labelled.uri, tmp_path / "nowhere", tmp_path / "sweep"))
    with pytest.raises(UserError, match=r"there is no data set at .*empty"):
        main(config_of(tmp_path / "empty", tiny_backbone, tmp_path / "sweep"))
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of(tiny_labelled.uri, tiny_backbone, tmp_path / "sweep", f"+space.init=[{tiny_backbone},{tmp_path}/nowhere]"))
    assert not (tmp_path / "sweep").exists()


def test_trials_whose_workers_cannot_all_start_are_refused(tmp_path, ray_session, tiny_labelled, tiny_backbone):
    with pytest.raises(UserError, match=r"3 trials at a time need 6 CPU, this Ray has 4: lower concurrent"):
        main(config_of(tiny_labelled.uri, tiny_backbone, tmp_path / "sweep", "concurrent=3", "finetune.scaling.workers=2"))


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"metric must be one of mAP, rank1, .*: got 'map'"):
        config_of("shards", "model", tmp_path, "metric=map")
    with pytest.raises(ConfigError, match=r"concurrent must be at least 1: got 0"):
        config_of("shards", "model", tmp_path, "concurrent=0")
    assert flat({"a": {"b.c": [1]}, "d": [2, 3]}) == {"a.b.c": [1], "d": [2, 3]}
