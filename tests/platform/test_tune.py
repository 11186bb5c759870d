"""Sweeps: the grid, and one sweep with real Ray Tune and real Ray Train runs."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from platform.engine.config.compose import load_config
from platform.engine.errors import ConfigError, FailedTrialsError, UserError
from platform.engine.runs.metrics import read_metrics
from platform.engine.schemas.evaluate_settings import EvaluateProgramConfig
from platform.engine.storage.location import open_storage
from platform.engine.sweep.space import name_of, read_space
from platform.engine.sweep.trials import folder_of, planned
from platform.evaluate import main as evaluate
from platform.tune import TuneConfig, main
from tests.platform.processes import kill, start
from tests.tiny import FINETUNE


def config_of(target, init, output, *overrides: str) -> TuneConfig:
    common = [f"finetune.{override}" for override in [f"target_set={target}", f"checkpoint={init}", *FINETUNE]]
    return load_config(
        TuneConfig,
        "tune",
        [f"output={output}", *common, "finetune.unsupervised.epochs=1", "finetune.unsupervised.iterations=2", *overrides],
    )


SPACE = "+space.unsupervised.cluster={eps:[0.5,0.8]}"


def test_a_sweep_runs_every_point_and_is_read_the_second_time(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    output = tmp_path / "sweep"
    given = [SPACE, "metric=rank1", "finetune.scaling.cpus_per_worker=4"]  # nothing else of a trial takes a part of a CPU
    config = config_of(tiny_labeled.uri, tiny_backbone, output, *given, "verbose=true")
    found = main(config)
    assert sorted(row["unsupervised.cluster.eps"] for row in found["trials"]) == [0.5, 0.8]
    assert found["best"] in found["trials"] and found["best"]["rank1"] == max(row["rank1"] for row in found["trials"])
    folders = {
        json.loads((folder / "config.json").read_text())["config"]["unsupervised"]["cluster"]["eps"]: folder
        for folder in (output / "trials").iterdir()
    }
    assert set(folders) == {0.5, 0.8}
    for row in found["trials"]:  # every trial is a separate fine-tuning run
        summary = json.loads((folders[row["unsupervised.cluster.eps"]] / "summary.json").read_text())
        assert summary["setting"] == "usl" and (summary["clusters"] or 0) == row["clusters"]
        assert {name: summary[name] for name in ("mAP", "rank1", "mINP")} == {n: row[n] for n in ("mAP", "rank1", "mINP")}
    printed = capsys.readouterr().out
    assert "2 trials, 1 at a time" in printed and printed.count("usl unsupervised epoch 1/1") == 2
    assert "tune: 2/2  unsupervised.cluster.eps=0.8: rank1 " in printed and "╭" not in printed and "ray_tune" not in printed
    assert pq.read_table(output / "trials.parquet")["rank1"].to_pylist() == [row["rank1"] for row in found["trials"]]
    best = [f"checkpoints={output}/best.safetensors", f"test_sets={tiny_labeled.uri}"]
    assert evaluate(load_config(EvaluateProgramConfig, "evaluate", best))[0]["weights"] == found["best"]["weights"]
    when = {eps: (folder / "summary.json").stat().st_mtime_ns for eps, folder in folders.items()}
    assert main(config_of(tiny_labeled.uri, tiny_backbone, output, *given)) == found
    assert "is complete already" in capsys.readouterr().out
    # After an interruption finished trials are read, not trained again.
    (output / "summary.json").unlink()
    assert main(config_of(tiny_labeled.uri, tiny_backbone, output, *given))["best"] == found["best"]
    assert "finished already: 2; left: 0" in capsys.readouterr().out
    assert when == {eps: (folder / "summary.json").stat().st_mtime_ns for eps, folder in folders.items()}


def test_the_grid_is_every_combination(tmp_path):
    config = config_of("shards", "model", tmp_path, "+space={unsupervised:{cluster:{eps:[0.4,0.5],k1:[20,30]},epochs:[3]}}")
    found = planned(config)
    assert len(found) == 4 and {tuple(sorted(point)) for point in found} == {
        ("unsupervised.cluster.eps", "unsupervised.cluster.k1", "unsupervised.epochs")
    }
    assert {(point["unsupervised.cluster.eps"], point["unsupervised.cluster.k1"]) for point in found} == {
        (0.4, 20),
        (0.4, 30),
        (0.5, 20),
        (0.5, 30),
    }
    assert len(planned(config_of("shards", "model", tmp_path))) == 4  # the default: eps of the clustering


@pytest.fixture(scope="module")
def base(tiny_labeled, tiny_backbone) -> TuneConfig:
    return config_of(tiny_labeled.uri, tiny_backbone, "nowhere")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{unsupervised:{cluster:{epsilon:[0.4]}}}", r"'unsupervised.cluster.epsilon' is no setting of platform.finetune"),
        ("{unsupervized:{epochs:[1]}}", r"'unsupervized.epochs' is no setting of platform.finetune"),
        ("{uniform:[0.4,0.6]}", r"'uniform' is no setting"),
        ("{unsupervised:{epochs:3}}", r"space.unsupervised.epochs must be a list of values to try.*got 3"),
        ("{unsupervised:{epochs:often}}", r"space.unsupervised.epochs must be a list of values to try.*got 'often'"),
        ("{unsupervised:{epochs:null}}", r"space.unsupervised.epochs must be a list of values to try.*got None"),
        ("{unsupervised:{epochs:[]}}", r"space.unsupervised.epochs must be a list"),
        ("{unsupervised:{}}", r"space.unsupervised must be a list"),
        ("{unsupervised:{cluster:[1]}}", r"space.unsupervised.cluster is a group of settings \(.*eps"),
        (
            "{unsupervised:{cluster:{eps:{normal:[0.4,0.6]}}}}",
            r"space.unsupervised.cluster.eps must be a list of values .*\{uniform:\[0.4,0.7\]\}.*got 'normal' below it",
        ),
        (
            "{unsupervised:{cluster:{eps:{grid_search:[0.4,0.6]}}}}",
            r"space.unsupervised.cluster.eps must be a list.*'grid_search'",
        ),
        ("{unsupervised:{cluster:{eps:[0.5,1.5]}}}", r"space: unsupervised.cluster.eps=1.5 cannot be: .*\(0, 1\): got 1.5"),
        ("{unsupervised:{epochs:[often]}}", r"space: unsupervised.epochs=often cannot be: .*unsupervised.epochs"),
        (
            "{setting:[supervised],supervised:{batch:{identities:[2,500]}}}",
            r"space: setting=supervised, supervised.batch.identities=500 cannot be: .*500",
        ),
        ("{unsupervised:{epochs:[[1,2]]}}", r"space: unsupervised.epochs=\[1, 2\] cannot be"),
        ("{augment:{image_size:[64,32]}}", r"space: augment.image_size=64 cannot be: .*augment.image_size"),
        ("{setting:[usl,unsupervised]}", r"space: setting=unsupervised cannot be: setting must be one of"),
        ("{unsupervised:{cluster:{eps:[0.5,0.6,0.5]}}}", r"space.unsupervised.cluster.eps has 0.5 more than once"),
        (
            "{evaluate:{expansion_alpha:[1,1.0]}}",
            r"evaluate.expansion_alpha=1 and evaluate.expansion_alpha=1.0 are the same trial",
        ),
        ("{unsupervised.epochs:[1],unsupervised:{epochs:[2]}}", r"space has unsupervised.epochs in two places"),
        ("{output:[a,b]}", r"space.output cannot be swept: every trial has a folder of its own"),
        ("{storage:{profile:[a,b]}}", r"space.storage.profile cannot be swept"),
        ("{scaling:{workers:[1,700]}}", r"space: scaling.workers=700 cannot be: 700 workers cannot share"),
        ("{unsupervised:{cluster:{eps:{uniform:[0.5,1.5]}}}}", r"space: unsupervised.cluster.eps=1\.\d+ cannot be: .*\(0, 1\)"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(tmp_path, base, space, message):
    with pytest.raises(UserError, match=message):
        main(replace(base, output=str(tmp_path / "sweep"), space=yaml.safe_load(space.replace(":", ": "))))
    assert not (tmp_path / "sweep").exists()


def test_a_space_that_is_too_large_is_counted_not_made(tmp_path):
    values = list(range(100))
    with pytest.raises(UserError, match=r"space has 1,000,000 combinations \(100 x 100 x 100\), at most 10,000"):
        read_space({"a": values, "b": values, "c": values}, {"a": 1, "b": 1, "c": 1}, {}).points(1, 0)


def test_folders_have_names_that_file_systems_take(tmp_path):
    point = {"checkpoint": f"s3://bucket/{'x' * 300}", "augment.image_size": [64, 32], "neck": "a:b*c"}
    name = name_of(point)
    assert len(name) <= 120 and "/" not in name and name.startswith("checkpoint=s3_bucket_xxx")
    assert name_of({"a.eps": 0.4, "k1": 20}) == "eps=0.4-k1=20"


@pytest.mark.slow
def test_one_trial_that_fails_does_not_hide_the_others(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    """The trial diverges every time, because its learning rate is huge. The results of the other trial are kept."""
    output = tmp_path / "sweep"
    arguments = (
        tiny_labeled.uri,
        tiny_backbone,
        output,
        "+space={setting:[supervised],supervised:{learning_rate:[1e-3,1e37]}}",
        "finetune.supervised.epochs=1",
    )
    with pytest.raises(
        FailedTrialsError,
        match=r"(?s)1 of 2 trials are not finished, 1 are; .*trials\.json.*\n  failed: "
        r"setting=supervised, supervised.learning_rate=1e\+37: .*(finite|NaN)",
    ) as caught:
        main(config_of(*arguments))
    assert caught.value.status == 11
    rows = {row["supervised.learning_rate"]: row for row in json.loads((output / "trials.json").read_text())}
    good, bad = rows[1e-3], rows[1e37]
    assert (good["state"], good["reason"], bad["state"]) == ("finished", "", "failed") and "mAP" in good and "mAP" not in bad
    assert good["config"]["supervised"]["learning_rate"] == 1e-3 and good["seed"] == good["config"]["seed"] == 0
    summary = json.loads((Path(good["folder"]) / "summary.json").read_text())
    assert good["weights"] == summary["weights"] and good["mAP"] == summary["mAP"]
    assert not (output / "summary.json").exists()
    printed = capsys.readouterr()
    assert f"{100 * good['mAP']:.1f}" in printed.out and "Traceback" not in printed.out + printed.err
    when = (Path(good["folder"]) / "summary.json").stat().st_mtime_ns
    with pytest.raises(FailedTrialsError):  # repeated: the finished trial is read, the failed one runs again
        main(config_of(*arguments))
    assert (Path(good["folder"]) / "summary.json").stat().st_mtime_ns == when
    assert "finished already: 1; left: 1" in capsys.readouterr().out


def test_wrong_paths_are_refused_before_anything_runs(tmp_path, tiny_labeled, tiny_backbone):
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of(tiny_labeled.uri, tmp_path / "nowhere", tmp_path / "sweep"))
    with pytest.raises(UserError, match=r"there is no data set at .*empty"):
        main(config_of(tmp_path / "empty", tiny_backbone, tmp_path / "sweep"))
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(
            config_of(
                tiny_labeled.uri, tiny_backbone, tmp_path / "sweep", f"+space.checkpoint=[{tiny_backbone},{tmp_path}/nowhere]"
            )
        )
    assert not (tmp_path / "sweep").exists()


def test_trials_whose_workers_cannot_all_start_are_refused(tmp_path, ray_session, tiny_labeled, tiny_backbone):
    with pytest.raises(UserError, match=r"3 trials at a time need 6 CPU, this Ray has 4: lower concurrent"):
        main(config_of(tiny_labeled.uri, tiny_backbone, tmp_path / "sweep", "concurrent=3", "finetune.scaling.workers=2"))


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"metric must be one of mAP, rank1, .*: got 'map'"):
        config_of("shards", "model", tmp_path, "metric=map")
    with pytest.raises(ConfigError, match=r"concurrent must be at least 1: got 0"):
        config_of("shards", "model", tmp_path, "concurrent=0")
    with pytest.raises(ConfigError, match=r"finetune.storage is that of the sweep: give storage instead"):
        config_of("shards", "model", tmp_path, "finetune.storage.profile=mine")
    with pytest.raises(
        ConfigError, match=r"scheduler.name=asha compares trials after their evaluations.*evaluate_every=1 or more"
    ):
        config_of("shards", "model", tmp_path, "scheduler.name=asha")
    with pytest.raises(ConfigError, match=r"search must be one of grid, optuna: got 'bayes'"):
        config_of("shards", "model", tmp_path, "search=bayes")


@pytest.mark.slow
def test_the_driver_is_killed_and_started_again(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    """It is killed when the first of two random trials is finished. Slow: a second Ray, which is killed."""
    output = tmp_path / "sweep"
    overrides = [f"finetune.{each}" for each in (f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FINETUNE)]
    overrides += [f"output={output}", "finetune.setting=supervised", "finetune.supervised.epochs=2", "samples=2"]
    overrides += ["space.supervised.learning_rate={log_uniform:[1e-5,1e-3]}"]
    log = tmp_path / "first.log"
    with log.open("wb") as stream:
        process = start("tune", overrides, stream)
        try:
            until = time.monotonic() + 150
            while not list(output.glob("trials/*/summary.json")):
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
        finally:
            kill(process)
    points = json.loads((output / "points.json").read_text())
    [finished] = output.glob("trials/*/summary.json")
    when = finished.stat().st_mtime_ns
    assert len(points) == 2 and not (output / "summary.json").exists()
    found = main(load_config(TuneConfig, "tune", overrides))
    assert "finished already: 1; left: 1" in capsys.readouterr().out
    assert [row["point"] for row in found["trials"]] == points and {row["state"] for row in found["trials"]} == {"finished"}
    assert finished.stat().st_mtime_ns == when


def cpus_are_free(ray, seconds: float = 10) -> bool:
    """Whether all logical CPUs are free again soon: no worker of a trial goes on."""
    until = time.monotonic() + seconds
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.2)
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


SUPERVISED = ["finetune.setting=supervised", "finetune.evaluate_start=false", "finetune.supervised.learning_rate=1e-6"]


@pytest.mark.slow  # two searches of several trials
def test_an_interrupted_search_with_optuna_goes_on(tmp_path, ray_session, supervised_run, tiny_backbone, tiny_labeled, capsys):
    """It was interrupted when one trial of three was finished and another one was drawn."""
    output = tmp_path / "sweep"
    given = [*SUPERVISED, "finetune.supervised.epochs=1", "search=optuna", "samples=3"]
    given += ["space.supervised.learning_rate={log_uniform:[1e-6,1e-2]}"]
    config = config_of(tiny_labeled.uri, tiny_backbone, output, *given)
    done, drawn = {"supervised.learning_rate": 3e-3}, {"supervised.learning_rate": 0.00123}
    finished = Path(folder_of(config, done).uri)
    shutil.copytree(supervised_run[0], finished)  # a finished run; that of this point is not needed
    (output / "points.json").write_text(json.dumps([done, drawn]))
    when = (finished / "summary.json").stat().st_mtime_ns
    found = main(config)
    printed = capsys.readouterr().out
    assert "finished already: 1; left: 2" in printed and "tune: 3/3  " in printed and "4/3" not in printed
    points = [row["point"] for row in found["trials"]]
    assert points[:2] == [done, drawn] and len({json.dumps(point) for point in points}) == 3
    assert json.loads((output / "points.json").read_text()) == points
    assert (finished / "summary.json").stat().st_mtime_ns == when and {row["state"] for row in found["trials"]} == {"finished"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_far_below_the_others_is_stopped(
    name, tmp_path, ray_session, supervised_run, tiny_backbone, tiny_labeled, capsys
):
    """Slow: forty epochs, each with an evaluation."""
    output = tmp_path / "sweep"
    given = [*SUPERVISED, "finetune.supervised.epochs=40", "finetune.evaluate_every=1", f"scheduler.name={name}"]
    given += ["scheduler.min_trials=1", "scheduler.reduction=2"]
    given += [f"space.checkpoint=[{supervised_run[0]},{tiny_backbone}]"]
    config = config_of(tiny_labeled.uri, tiny_backbone, output, *given)
    good, bad = main(config)["trials"]
    assert (good["state"], bad["state"]) == ("finished", "stopped early") and bad["mAP"] < good["mAP"]
    rows = [row for row in read_metrics(open_storage(bad["folder"])) if "mINP" in row]
    assert bad["mAP"] == rows[bad["epochs"] - 1]["mAP"] and bad["epochs"] < 40
    assert cpus_are_free(ray_session)
    assert f"stopped after epoch {bad['epochs']}" in capsys.readouterr().out
    (output / "summary.json").unlink()
    assert main(config)["trials"] == [good, bad]  # it stays stopped
    assert "finished already: 2; left: 0" in capsys.readouterr().out


@pytest.mark.slow
def test_the_worst_of_a_population_continues_from_the_best(
    tmp_path, ray_session, supervised_run, tiny_backbone, tiny_labeled, capsys
):
    """Two trials, one with a rate that destroys the trained start: it is replaced."""
    output = tmp_path / "sweep"
    given = [*SUPERVISED, "finetune.supervised.epochs=12", "finetune.evaluate_every=1", "scheduler.name=pbt", "scheduler.grace=2"]
    given += [f"finetune.checkpoint={supervised_run[0]}", "concurrent=2", "samples=2"]
    given += ["space.supervised.learning_rate={log_uniform:[1e-7,0.3]}"]
    config = config_of(tiny_labeled.uri, tiny_backbone, output, *given)
    rows = main(config)["trials"]
    printed = capsys.readouterr().out
    replaced, new = [row for row in rows if row["state"] == "stopped early"], rows[2:]
    assert len(rows) > 2 and replaced and all("replaced by supervised.learning_rate=" in row["reason"] for row in replaced)
    assert "from the checkpoint of supervised.learning_rate=" in printed and any(row["state"] == "finished" for row in new)
    finished = [row for row in rows if row["state"] == "finished"]
    assert len(finished) == 2 and len(rows) == 2 + len(replaced)
    for row in finished:  # the whole curve, the epochs of the trial that it continues included
        assert [each["epoch"] for each in read_metrics(open_storage(row["folder"])) if each["epoch"]] == list(range(1, 13))
    assert json.loads((output / "points.json").read_text()) == [row["point"] for row in rows]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["space.supervised.epochs={integer:[2,9]}"],
            r"supervised.epochs cannot change during a run, as scheduler.name=pbt requires",
        ),
        (["space.supervised.learning_rate=[1e-3,1e-4]"], r"scheduler.name=pbt needs a distribution, such as"),
        (
            ["space.supervised.learning_rate={uniform:[1e-4,1e-3]}", "samples=4"],
            r"concurrent must be at least their number, 4: got 1",
        ),
        (["search=optuna"], r"scheduler.name=pbt changes the settings itself: search must be grid, got optuna"),
    ],
)
def test_what_is_no_population(tmp_path, tiny_labeled, tiny_backbone, given, message):
    with pytest.raises(UserError, match=message):
        main(config_of(tiny_labeled.uri, tiny_backbone, tmp_path, "scheduler.name=pbt", "finetune.evaluate_every=1", *given))
