"""Fine-tuning through its `main`, as a user runs it: three settings, more workers, kill and resume, refusals."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.data.shards import read_manifest, read_rows, write_manifest, write_shard
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.inference.models import load_model
from platform.engine.runs.metrics import read_metrics
from platform.engine.schemas.evaluate_settings import EvaluateProgramConfig
from platform.engine.schemas.finetune_settings import SETTINGS
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.train.scaling import ScalingConfig
from platform.evaluate import main as evaluate
from platform.finetune import FinetuneConfig, main, shared_micro_batches, with_micro_batches
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, load_vit, save_model, weights_hash
from tests.fixtures_runs import finetune_config
from tests.platform.processes import kill, start
from tests.platform.survival import Process
from tests.tiny import FINETUNE, FITTING, IMAGENET, TINY_VIT

ROOT = Path(__file__).resolve().parents[2]
CHANCE_MAP = 0.25  # two of 17 gallery images are correct: random rankings have an mAP slightly above 0.2


def rows_of(output) -> list[dict]:
    return read_metrics(open_storage(str(output)))


def losses(output) -> list[tuple]:
    return [(row["position"], row["loss"]) for row in rows_of(output) if "loss" in row]


# ---- what the settings do


def test_supervised_learns_and_leaves_its_results(supervised_run, tiny_labeled):
    output, summary = supervised_run
    rows = rows_of(output)
    assert [row["epoch"] for row in rows] == list(range(1, 31)) and {row["phase"] for row in rows} == {0}
    assert [row["position"] for row in rows] == [36 * epoch for epoch in range(1, 31)] and summary["images_seen"] == 1080
    assert summary["warnings"] == [] and summary["epochs_without_training"] == 0
    assert summary["evaluation"] == {"expansion": None, "flip": None, "reranking": None, "resize": None}
    assert rows[-1]["accuracy"] > 0.9 and rows[0]["accuracy"] < 0.6  # of 6 identities, randomly cropped
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert summary["mAP"] > CHANCE_MAP and 0 < summary["mINP"] <= summary["mAP"] <= 1
    assert summary["rank1"] <= summary["rank5"] <= summary["rank10"] <= 1
    assert summary["queries"] == summary["gallery"] == 18
    assert (summary["setting"], summary["neck"], summary["clusters"]) == ("supervised", "before", None)
    model = load_reid(output / "model.safetensors")
    assert weights_hash(model).startswith(summary["weights"]) and model.num_classes == 6
    rankings = json.loads((output / "rankings.json").read_text())
    assert len(rankings) == 8 and all(len(row["matches"]) == len(row["correct"]) == 10 for row in rankings)


def test_a_complete_run_is_not_done_again(supervised_run, tiny_backbone, tiny_labeled, capsys):
    output, summary = supervised_run
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert main(finetune_config(tiny_labeled, output, f"checkpoint={tiny_backbone}", *FITTING)) == summary
    assert "is complete already" in capsys.readouterr().out
    pinned = json.loads((output / "inputs.json").read_text())  # a stopped run is not continued with other data or weights
    assert pinned == {
        "target_set": read_manifest(tiny_labeled).checksum,
        "weights": load_model(str(tiny_backbone), StorageConfig()).weights,
    }
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(supervised_run, tiny_backbone, tiny_labeled):
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  seed: 0 -> 1\n"):
        main(finetune_config(tiny_labeled, supervised_run[0], f"checkpoint={tiny_backbone}", *FITTING, "seed=1"))


def test_usl_clusters_and_learns_from_the_clusters(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    """The images have another size than those of pre-training."""
    output = tmp_path / "usl"
    summary = main(
        finetune_config(
            tiny_labeled, output, "setting=usl", f"checkpoint={tiny_backbone}", "evaluate_every=2", "augment.image_size=[96,32]"
        )
    )
    assert summary["image_size"] == [96, 32]
    assert "position embeddings resized from 4 x 2 to " in capsys.readouterr().out
    rows = rows_of(output)
    assert [row["epoch"] for row in rows] == [1, 2] and all(row["phase"] == 0 for row in rows)
    for row in rows:
        assert 2 <= row["clusters"] <= 18 and 0 <= row["outliers"] < 36 and row["contrast"] == row["loss"] > 0
        assert -1 <= row["adjusted_rand_index"] <= 1 and row["cluster_seconds"] > 0
    assert "mAP" not in rows[0] and rows[1]["mAP"] == summary["mAP"] and rows[1]["rank1"] == summary["rank1"]
    assert summary["clusters"] == rows[-1]["clusters"] and summary["neck"] == "after"
    assert load_reid(output / "model.safetensors").num_classes == 0


@pytest.mark.slow
def test_fewer_than_two_clusters_change_nothing_and_are_said(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    """This includes epochs before the first optimizer step, whose checkpoints must be written and read."""
    output = tmp_path / "usl"
    overrides = ["setting=usl", f"checkpoint={tiny_backbone}", "unsupervised.cluster.min_samples=37"]
    summary = main(finetune_config(tiny_labeled, output, *overrides))
    said = capsys.readouterr().out
    assert said.count("warning: fewer than two clusters (all 36 images are outliers)") == 2 and "unsupervised.cluster.eps" in said
    assert "nothing was trained: the figures are those of the start" in said.strip().splitlines()[-1]
    assert summary["warnings"][0] == "nothing was trained: the figures are those of the start"
    assert summary["epochs_without_training"] == 2 and summary["images_seen"] == 0
    assert [row["position"] for row in rows_of(output)] == [0, 0]
    assert [row["clusters"] for row in rows_of(output)] == [0, 0] and losses(output) == []
    assert summary["clusters"] == 0 and 0 < summary["mAP"] <= 1
    after = load_reid(output / "model.safetensors").backbone.state_dict()
    before = torch.load(_state_of(tiny_backbone, tmp_path), weights_only=True)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    # A run can resume from the last checkpoint, whose engine has taken no step.
    (output / "summary.json").unlink()
    again = main(finetune_config(tiny_labeled, output, *overrides))
    assert again == summary | {"environment": again["environment"]} and "continuing after" in capsys.readouterr().out
    assert len(rows_of(output)) == 2


def _state_of(folder: Path, tmp_path: Path) -> Path:
    from reidssl.models.weights import load_vit

    torch.save(load_vit(folder / "backbone.safetensors").state_dict(), tmp_path / "state.pt")
    return tmp_path / "state.pt"


# ---- the same numbers on any number of workers


@pytest.mark.slow
def test_two_workers_give_the_same_losses_as_one(tmp_path, ray_session, tiny_backbone, tiny_labeled, tiny_source):
    outputs = [tmp_path / f"workers-{workers}" for workers in (1, 2)]
    for workers, output in enumerate(outputs, 1):
        main(
            finetune_config(
                tiny_labeled,
                output,
                "setting=uda",
                f"source_set={tiny_source.uri}",
                f"checkpoint={tiny_backbone}",
                "supervised.epochs=2",
                "supervised.batch.micro_batches=2",
                "unsupervised.batch.micro_batches=2",
                f"scaling.workers={workers}",
                "supervised.identity=arcface",
                "supervised.center_weight=0.05",
            )
        )
    one, two = map(losses, outputs)
    assert len(one) == 4 and two == [(place, pytest.approx(loss, rel=1e-4)) for place, loss in one]
    one, two = (rows_of(output) for output in outputs)
    for name in ("phase", "clusters", "outliers"):
        assert [row.get(name) for row in one] == [row.get(name) for row in two]


def inside_an_epoch(run: Path, phase: int) -> bool:
    """Whether the run has a checkpoint inside an epoch of this phase (from 1), after the first one."""
    positions = [int(path.parent.name.rpartition("-")[2]) for path in run.glob("checkpoints/position-*/manifest.json")]
    return any(position // 10**9 == phase and position % 10**5 and position % 10**9 > 10**5 for position in positions)


@pytest.mark.slow
def test_uda_killed_inside_an_epoch_of_its_second_phase(tmp_path, ray_session, tiny_backbone, tiny_labeled, tiny_source, capsys):
    """The result equals that of an uninterrupted run, in which both phases run in the same process."""
    overrides = [
        "setting=uda",
        f"checkpoint={tiny_backbone}",
        f"source_set={tiny_source.uri}",
        "supervised.drop_path=0.1",
        "unsupervised.epochs=4",
        "unsupervised.iterations=6",
        "unsupervised.ema_momentum=0.9",
        "unsupervised.drop_path=0.3",
        "save_every_steps=2",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = main(finetune_config(tiny_labeled, whole, *overrides))
    command = [f"target_set={tiny_labeled.uri}", f"output={killed}", *FINETUNE, *overrides]
    log = tmp_path / "first.log"
    with log.open("wb") as stream:
        process = start("finetune", command, stream)
        try:
            deadline = time.monotonic() + 150
            while not inside_an_epoch(killed, phase=2):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        finally:
            kill(process)
    assert not (killed / "summary.json").exists()
    capsys.readouterr()
    found = main(finetune_config(tiny_labeled, killed, *overrides))
    assert re.search(r"continuing after phase 2, epoch [1-3] and [24] of 6 steps", capsys.readouterr().out)
    rows = rows_of(killed)
    assert [(row["phase"], row["epoch"]) for row in rows] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert losses(killed) == [(place, pytest.approx(loss, rel=1e-4)) for place, loss in losses(whole)]
    assert [row.get("clusters") for row in rows] == [row.get("clusters") for row in rows_of(whole)]
    assert [row["position"] for row in rows] == sorted({row["position"] for row in rows}) and found["images_seen"] == expected[
        "images_seen"
    ] == rows[-1]["position"]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-3) and found["clusters"] == expected["clusters"]
    pair = [load_reid(folder / "model.safetensors").state_dict() for folder in (whole, killed)]
    assert all(torch.allclose(pair[0][name], pair[1][name], atol=1e-4) for name in pair[0])


@pytest.mark.slow
def test_sigterm_inside_an_epoch_loses_no_step(tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys):
    """The program ends after a checkpoint inside the epoch. The same command continues there, with the same result."""
    overrides = ["setting=usl", f"checkpoint={tiny_backbone}", "unsupervised.iterations=150", "unsupervised.drop_path=0.3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = main(finetune_config(tiny_labeled, whole, *overrides))
    driver = Process("platform.finetune", f"target_set={tiny_labeled.uri}", f"output={stopped}", *FINETUNE, *overrides)
    try:
        driver.wait_for(r"unsupervised epoch 1/2")
        driver.process.send_signal(signal.SIGTERM)
        _, told = driver.wait_for(r"checkpoint at unsupervised epoch 2 step (\d+) on notice")
        assert driver.wait(60) == 128 + signal.SIGTERM, driver.text
    finally:
        driver.kill()
    assert 1 <= int(told[1]) <= 150 and not (stopped / "summary.json").exists()
    capsys.readouterr()
    found = main(finetune_config(tiny_labeled, stopped, *overrides))
    assert f"continuing after phase 1, epoch 1 and {told[1]} of 150 steps" in capsys.readouterr().out
    assert losses(stopped) == [(place, pytest.approx(loss, rel=1e-4)) for place, loss in losses(whole)]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-3) and found["images_seen"] == expected["images_seen"]


def test_an_evaluation_that_fails_leaves_the_model_and_is_all_that_is_repeated(
    tmp_path, ray_session, tiny_backbone, tiny_labeled, capsys
):
    """The evaluation fails because its result cannot be written."""
    output = tmp_path / "run"
    (output / "rankings.json").mkdir(parents=True)
    config = finetune_config(tiny_labeled, output, f"checkpoint={tiny_backbone}", "supervised.epochs=1")
    with pytest.raises((UserError, StorageError)):
        main(config)
    assert not (output / "summary.json").exists()
    trained, rows = weights_hash(load_reid(output / "model.safetensors")), rows_of(output)
    (output / "rankings.json").rmdir()
    capsys.readouterr()
    summary = main(config)
    said = capsys.readouterr().out
    assert trained.startswith(summary["weights"]) and rows_of(output) == rows
    assert "continuing after phase 1, epoch 1" in said and "epoch 1/1" not in said


def test_the_model_is_there_before_it_is_judged(tmp_path, ray_session, tiny_labeled):
    """Evaluation fails because the features overflow."""
    broken = build_vit(TINY_VIT)
    with torch.no_grad():
        broken.norm.weight.fill_(3e38)
    (tmp_path / "init").mkdir()
    save_model(broken, {"kind": "backbone"} | IMAGENET, tmp_path / "init" / "backbone.safetensors")
    with pytest.raises(UserError, match=r"labeled cannot be judged: "):
        main(finetune_config(tiny_labeled, tmp_path / "run", f"checkpoint={tmp_path}/init", "supervised.epochs=0"))
    assert load_reid(tmp_path / "run" / "model.safetensors").num_classes == 6
    assert not (tmp_path / "run" / "summary.json").exists()


# ---- the optional recipes


@pytest.mark.slow  # five runs; each recipe has a unit test
def test_the_recipes_on_one_and_two_workers_and_after_a_restart(
    tmp_path, ray_session, tiny_backbone, tiny_labeled, tiny_source, capsys
):
    """Averaged weights, frozen layers, mirror images, a second training set, the best model, and the evaluation of the start."""
    given = [
        f"checkpoint={tiny_backbone}",
        f"train_sets=[{tiny_source.uri}]",
        "supervised.epochs=2",
        "supervised.learning_rate=1e-3",
        "supervised.optimizer=sgd",
    ]
    given += ["supervised.ema_momentum=0.5", "supervised.freeze_layers=2", "supervised.batch.micro_batches=2"]
    given += ["keep_best=mAP", "evaluate_every=1", "evaluate_start=true", "evaluate.flip=true"]
    one, two = tmp_path / "one", tmp_path / "two"
    summary = main(finetune_config(tiny_labeled, one, *given))
    assert f"before fine-tuning: {summary['start']['mAP']:.1%}" in capsys.readouterr().out
    other = main(finetune_config(tiny_labeled, two, *given, "scaling.workers=2"))
    model, before = load_reid(one / "model.safetensors"), load_vit(tiny_backbone / "backbone.safetensors").state_dict()
    state, beside = model.state_dict(), load_reid(two / "model.safetensors").state_dict()
    # Batch norms also count their forward passes, which are those of one worker.
    assert all(torch.allclose(state[name], beside[name], atol=1e-5) for name in state if state[name].is_floating_point())
    people = len(set(read_rows(tiny_source, ["pid"], split="train")["pid"].to_pylist()))
    assert other["mAP"] == pytest.approx(summary["mAP"], abs=1e-3) and model.num_classes == 6 + people
    same = {name for name, value in model.backbone.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if "patch_embed" in name or "blocks.0." in name or name in ("cls_token", "pos_embed")} == same
    rows = rows_of(one)
    assert [row["epoch"] for row in rows] == [0, 1, 2] and rows[0]["mAP"] == summary["start"]["mAP"]
    assert summary["mAP"] == pytest.approx(rows[-1]["mAP"]) and summary["evaluation"]["flip"] is True
    assert summary["best"]["mAP"] == max(row["mAP"] for row in rows[1:])
    # The same figures from the files.
    files = [one / "model.safetensors", one / "best.safetensors"]
    judged = evaluate(
        load_config(
            EvaluateProgramConfig,
            "evaluate",
            [f"checkpoints=[{','.join(map(str, files))}]", f"test_sets={tiny_labeled.uri}", "evaluate.flip=true"],
        )
    )
    assert [row["mAP"] for row in judged] == pytest.approx([summary["mAP"], summary["best"]["mAP"]], abs=1e-5)
    assert "mirror images averaged" in capsys.readouterr().out
    (one / "summary.json").unlink()  # the average comes from the checkpoint
    (one / "model.safetensors").unlink()
    again = main(finetune_config(tiny_labeled, one, *given))
    assert (again["weights"], again["best"]) == (summary["weights"], summary["best"])


@pytest.mark.slow
def test_a_mean_teacher_that_hardly_moves_keeps_its_pseudo_labels(tmp_path, ray_session, tiny_backbone, tiny_labeled):
    """The labels come from the averaged weights, the exported model too; only the student moves fast. The stem is frozen, whose
    batch norms would change the teacher."""
    given = ["setting=usl", f"checkpoint={tiny_backbone}", "unsupervised.learning_rate=0.05", "unsupervised.freeze_layers=1"]
    given += ["unsupervised.neck=before", "unsupervised.ema_momentum=0.9999999", "unsupervised.teacher_clusters=true"]
    main(finetune_config(tiny_labeled, tmp_path / "usl", *given))
    first, second = rows_of(tmp_path / "usl")
    assert second["label_stability"] == 1.0 and second["clusters"] == first["clusters"] > 1
    assert abs(second["loss"] - first["loss"]) > 0.1
    after = load_reid(tmp_path / "usl" / "model.safetensors").backbone.state_dict()
    before = load_vit(tiny_backbone / "backbone.safetensors").state_dict()
    assert all(torch.allclose(after[name], before[name], atol=1e-4) for name in before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keep_best=mAP", r"keep_best=mAP needs evaluations during training"),
        ("keep_best=map", r"keep_best must be one of mAP, rank1"),
        (
            "supervised.freeze_layers=4",
            r"supervised.freeze_layers must be at most 3, the 2 blocks and the patch embedding: got 4",
        ),
        ("train_sets=[/nowhere]", r"there is no data set at .*nowhere"),
        ("unsupervised.teacher_clusters=true", r"unsupervised.teacher_clusters needs averaged weights: give ema_momentum"),
        ("unsupervised.teacher_weight=0.5", r"unsupervised.teacher_weight needs averaged weights: give ema_momentum"),
        ("unsupervised.teacher_weight=1", r"unsupervised.teacher_weight must be in \[0, 1\): got 1"),
        ("supervised.jigsaw.parts=9", r"supervised.jigsaw.parts must be at most 8, the number of patches: got 9"),
        ("train_fraction=0", r"train_fraction must be in \(0, 1\]: got 0"),
        ("train_fraction=0.3", r"has 2 people in split train, a batch needs 3"),
    ],
)
def test_recipes_that_cannot_be(tmp_path, tiny_labeled, tiny_backbone, override, message):
    with pytest.raises(UserError, match=message):
        main(finetune_config(tiny_labeled, tmp_path / "run", f"checkpoint={tiny_backbone}", override))
    assert not (tmp_path / "run").exists()


# ---- refusals before anything starts


def test_a_data_set_given_twice_is_refused_under_whatever_path(tmp_path, tiny_labeled, tiny_backbone):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_labeled.path, copy)
    same = r"are the same data set \(checksum .* twice, as different people, or with the labels that uda must not see"
    for names, given in (
        (r"target_set and train_sets\[0\]", [f"train_sets=[{copy}]"]),
        ("target_set and source_set", ["setting=uda", f"source_set={copy}"]),
    ):
        with pytest.raises(UserError, match=f"{names} {same}"):
            main(finetune_config(tiny_labeled, tmp_path / "run", f"checkpoint={tiny_backbone}", *given))
    assert not (tmp_path / "run").exists()


def test_wrong_paths(tmp_path, tiny_labeled, tiny_backbone):
    with pytest.raises(UserError, match=r"no model at .*nowhere: neither model.safetensors nor backbone.safetensors"):
        main(finetune_config(tiny_labeled, tmp_path / "a", f"checkpoint={tmp_path}/nowhere"))
    with pytest.raises(StorageError, match=r"there is no data set at .*nowhere"):
        main(finetune_config(open_storage(str(tmp_path / "nowhere")), tmp_path / "b", f"checkpoint={tiny_backbone}"))
    with pytest.raises(StorageError, match=r"there is no data set at .*source"):
        main(
            finetune_config(
                tiny_labeled, tmp_path / "c", "setting=uda", f"source_set={tmp_path}/source", f"checkpoint={tiny_backbone}"
            )
        )
    assert not list(tmp_path.iterdir())  # the corrected command must not find the configuration of the wrong one


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_a_file_that_is_no_checkpoint(tmp_path, tiny_labeled, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"weights.pth"):
        main(finetune_config(tiny_labeled, tmp_path / "run", f"checkpoint={tmp_path}/weights.pth"))


def test_a_pickle_that_runs_code_is_refused(tmp_path, tiny_labeled):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"teacher": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth"):
        main(finetune_config(tiny_labeled, tmp_path / "run", f"checkpoint={tmp_path}/weights.pth"))
    assert not (tmp_path / "owned").exists()


def test_supervised_needs_labels_and_all_need_their_splits(tmp_path, ray_session, tiny_shards, tiny_labeled, tiny_backbone):
    with pytest.raises(UserError, match=r"tiny has no images of split query, gallery; its splits are train"):
        main(finetune_config(tiny_shards, tmp_path / "a", "setting=usl", f"checkpoint={tiny_backbone}"))
    unlabeled = open_storage(str(tmp_path / "unlabeled"))
    _without_labels(tiny_labeled, unlabeled)
    with pytest.raises(UserError, match=r"has unlabeled images in split train: .*use setting=usl"):
        main(finetune_config(unlabeled, tmp_path / "b", f"checkpoint={tiny_backbone}"))


def test_what_no_batch_or_worker_can_share(tmp_path, tiny_labeled, tiny_backbone):
    """The error comes before Ray starts."""
    with pytest.raises(UserError, match=r"has 6 people in split train, a batch needs 16: lower supervised.batch.identities"):
        main(finetune_config(tiny_labeled, tmp_path / "a", f"checkpoint={tiny_backbone}", "supervised.batch.identities=16"))
    with pytest.raises(UserError, match=r"7 workers cannot share the 6 images of a step: lower scaling.workers, or raise "):
        main(finetune_config(tiny_labeled, tmp_path / "b", f"checkpoint={tiny_backbone}", "scaling.workers=7"))
    with pytest.raises(UserError, match=r"2 workers cannot share 3 micro-batches per step evenly; .*: \[1, 3\]"):
        main(
            finetune_config(
                tiny_labeled,
                tmp_path / "c",
                f"checkpoint={tiny_backbone}",
                "scaling.workers=2",
                "supervised.batch.micro_batches=3",
            )
        )
    assert not list(tmp_path.iterdir())


EXPERIMENTS = sorted(file.stem for file in (ROOT / "configs" / "experiment").glob("*.yaml") if file.stem.startswith(SETTINGS))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_published_recipe_runs_on_any_number_of_workers(tmp_path, experiment):
    """The batch stays the published one, 16 x 4 and 32 x 8 images per step, on any number of workers."""
    composed = load_config(
        FinetuneConfig, "finetune", [f"experiment={experiment}", "scaling=gpus8", "checkpoint=x", "source_set=y"]
    )
    for scaling, sizes in (
        (composed.scaling, [8]),
        (ScalingConfig(), [1]),
        (ScalingConfig(workers=2), [2]),
        (ScalingConfig(workers=4, min_workers=1), [1, 2, 4]),
        (ScalingConfig(workers=8, min_workers=2), [2, 4, 8]),
        (ScalingConfig(workers=8, min_workers=3), [3, 4, 6, 8]),
    ):
        config = with_micro_batches(replace(composed, scaling=scaling), open_storage(str(tmp_path)))
        assert config.scaling.sizes(shared_micro_batches(config)) == sizes
        assert (config.supervised.batch.identities, config.supervised.batch.instances) == (16, 4)
        assert (config.unsupervised.batch.identities, config.unsupervised.batch.instances) == (32, 8)


def test_a_run_keeps_the_cut_that_it_began_with(tmp_path, tiny_labeled):
    def cut(*overrides: str) -> tuple[int, int]:
        output = tmp_path / "run"
        config = with_micro_batches(finetune_config(tiny_labeled, output, *overrides), open_storage(str(output)))
        return config.supervised.batch.micro_batches, config.unsupervised.batch.micro_batches

    common = ["setting=uda", "source_set=x", "checkpoint=y"]
    assert cut(*common, "scaling.workers=2") == (2, 2) and cut(*common, "scaling.workers=4") == (4, 4)
    assert cut("checkpoint=y", "scaling.workers=2") == (2, 0)  # a phase that does not run gives no message
    (tmp_path / "run").mkdir()
    batches = {"supervised": {"batch": {"micro_batches": 4}}, "unsupervised": {"batch": {"micro_batches": 8}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"program": "finetune", "config": batches}))
    assert cut(*common, "scaling.workers=2") == (4, 8)
    assert cut(*common, "scaling.workers=2", "supervised.batch.micro_batches=2") == (2, 8)


def _without_labels(origin, location) -> None:
    import pyarrow as pa

    manifest = read_manifest(origin)
    tables = [pq.read_table((origin / entry.name).path) for entry in manifest.files]
    table = pa.concat_tables(tables)
    train = pa.compute.equal(table["split"], "train")
    pids = pa.compute.if_else(train, pa.scalar(-1, pa.int32()), table["pid"])
    table = table.set_column(table.schema.get_field_index("pid"), table.schema.field("pid"), pids)
    write_manifest(location, replace(manifest, files=[write_shard(location, table, 16)]))


def test_settings_that_contradict_each_other(tmp_path, tiny_labeled):
    with pytest.raises(ConfigError, match=r"source_set must name the labeled source set for setting=uda: got ''"):
        finetune_config(tiny_labeled, tmp_path, "setting=uda")
    with pytest.raises(ConfigError, match=r"setting must be one of supervised, uda, usl: got 'semi'"):
        finetune_config(tiny_labeled, tmp_path, "setting=semi")
    with pytest.raises(ConfigError, match=r"augment.image_size must equal model.image_size \(256, 128\): got \(64, 32\)"):
        finetune_config(tiny_labeled, tmp_path)
    with pytest.raises(ConfigError, match=r"batch.identities must be at least 2 for the triplet loss \(or .*\): got 1"):
        finetune_config(tiny_labeled, tmp_path, "checkpoint=x", "supervised.batch.identities=1", "supervised.triplet_weight=1")
    with pytest.raises(ConfigError, match=r"batch must have 2 images or more, for the batch norm of the neck"):
        finetune_config(
            tiny_labeled, tmp_path, "checkpoint=x", "unsupervised.batch.identities=1", "unsupervised.batch.instances=1"
        )
    with pytest.raises(ConfigError, match=r"evaluate.tasks must be 0 in fine-tuning, .*: got 3"):
        finetune_config(tiny_labeled, tmp_path, "checkpoint=x", "evaluate.tasks=3")
    with pytest.raises(
        ConfigError, match=r"overrides are made to the backbone of checkpoint, which is empty: set stride of model"
    ):
        finetune_config(tiny_labeled, tmp_path, "model.image_size=[64,32]", "overrides.stride=12")
    for setting in ("usl", "uda"):
        with pytest.raises(ConfigError, match=rf"supervised.jigsaw.parts must be 0 with setting={setting}, .*: got 4"):
            finetune_config(
                tiny_labeled, tmp_path, "checkpoint=x", "source_set=y", f"setting={setting}", "supervised.jigsaw.parts=4"
            )
    with pytest.raises(ConfigError, match=r"zero_stage must be 0, 1 or 2: got 3"):
        finetune_config(tiny_labeled, tmp_path, "checkpoint=x", "deepspeed=zero3")
    with pytest.raises(ConfigError, match=re.escape("there is no key 'supervised.epoch'; did you mean supervised.epochs")):
        finetune_config(tiny_labeled, tmp_path, "checkpoint=x", "supervised.epoch=3")
