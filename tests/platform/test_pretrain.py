"""Pre-training through its `main`, as a user runs it: one and more workers, resume, kill, refusals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.data.shards import read_manifest
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.pretrain.plan import plan_of
from platform.engine.runs.metrics import read_metrics
from platform.engine.runs.run_folder import open_run
from platform.engine.storage.location import open_storage
from platform.engine.stream.order import StreamPlan
from platform.engine.stream.units import read_units
from platform.engine.stream.windows import read_window
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.optimizers import Schedules
from platform.pretrain import PretrainConfig, main, workers_text
from platform.report import ReportConfig
from platform.report import main as report
from reidssl.models.weights import load_vit
from tests.fixtures_shards import with_labels
from tests.platform.own_lines import foreign_lines
from tests.tiny import RESUMED as TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = 450 // 16  # 90 images, 5 epochs: the second epoch begins within a micro-batch, the last 2 samples are never seen


def config_of(tiny_shards, output, *overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [f"data.uri={tiny_shards.uri}", f"output={output}", *TINY, *overrides])


def losses(output) -> dict[int, float]:
    return {row["position"]: row["loss"] for row in read_metrics(open_storage(str(output)))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_shards, ray_session):
    """(folder, summary) of an uninterrupted run with one worker."""
    output = tmp_path_factory.mktemp("pretrain") / "alone"
    # With segments of 5 windows the stream has three Ray Data executions.
    return output, main(config_of(tiny_shards, output, f"tracking.audit={output}/audit", "stream.segment_windows=5"))


# ---- the files of a run


def test_a_run_leaves_backbone_log_checkpoints_and_summary(alone, tiny_shards):
    output, summary = alone
    rows = read_metrics(open_storage(str(output)))
    assert [row["position"] for row in rows] == [16 * step for step in range(1, STEPS + 1)]
    for name in (
        "time",
        "loss",
        "learning_rate",
        "images_per_second",
        "teacher_entropy",
        "feature_std",
        "teacher_momentum",
        "weight_decay",
    ):
        assert all(name in row for row in rows), name
    assert summary["samples_seen"] == 16 * STEPS and summary["steps"] == STEPS
    assert summary["final_loss"] == rows[-1]["loss"] and summary["environment"]["torch"] == version("torch")
    assert [found.name for found in open_storage(str(output / "checkpoints")).list()] == [
        f"position-{position:012d}/{name}" for position in (416, 448) for name in ("manifest.json", "state.pt")
    ]
    assert json.loads((output / "config.json").read_text())["config"]["stream"]["micro_batch"] == 8
    backbone = load_vit(output / "backbone.safetensors")
    state = CheckpointStore(open_storage(str(output / "checkpoints"))).newest().payload["objective"]
    own = backbone.state_dict()
    assert own and all(torch.equal(value, state[f"teacher.backbone.{name}"]) for name, value in own.items())


def test_a_run_sees_the_samples_of_the_plan_in_their_order(alone, tiny_shards):
    output, _ = alone
    plan, total = plan_of(config_of(tiny_shards, output))
    tables = [read_window(plan, task, tiny_shards) for task in plan.tasks(0, total)]
    expected = [
        [epoch, key] for table in tables for epoch, key in zip(table["epoch"].to_pylist(), table["key"].to_pylist(), strict=True)
    ]
    files = sorted((output / "audit").iterdir())
    assert [sample[:2] for file in files for sample in json.loads(file.read_text())] == expected


def test_a_run_logs_what_its_checkpoints_cost(alone):
    rows = [row for row in read_metrics(open_storage(str(alone[0]))) if "checkpoint_seconds" in row]
    assert len(rows) >= STEPS // 4
    assert all(
        row["checkpoint_mebibytes"] > 0 and row["checkpoint_seconds"] > 0 and row["checkpoint_stall_seconds"] > 0 for row in rows
    )


def test_a_complete_run_is_not_done_again(alone, tiny_shards, capsys):
    output, summary = alone
    before = (output / "metrics.jsonl").stat().st_mtime_ns
    assert main(config_of(tiny_shards, output)) == summary
    assert "is complete already" in capsys.readouterr().out
    assert (output / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_stopped_before_its_summary_is_finished(alone, tiny_shards, tmp_path, capsys):
    output, summary = alone
    copy = tmp_path / "stopped"
    copy.mkdir()
    subprocess.run(["cp", "-r", *(output / name for name in ("config.json", "metrics.jsonl", "checkpoints")), copy], check=True)
    again = main(config_of(tiny_shards, copy))
    assert f"continuing from {16 * STEPS} samples seen" in capsys.readouterr().out
    assert again["final_loss"] == summary["final_loss"] and again["steps"] == STEPS
    assert (copy / "backbone.safetensors").exists() and losses(copy) == losses(output)


def test_a_run_whose_log_was_lost_is_finished_without_its_figures(alone, tiny_shards, tmp_path, capsys):
    output, summary = alone
    copy = tmp_path / "stopped"
    copy.mkdir()
    subprocess.run(["cp", "-r", *(output / name for name in ("config.json", "checkpoints")), copy], check=True)
    again = main(config_of(tiny_shards, copy))
    assert capsys.readouterr().out.count("metrics.jsonl holds no row of this run, so its summary has no loss, speed or") == 1
    assert again["weights"] == summary["weights"] and again["steps"] == STEPS
    assert again["final_loss"] is None and again["images_per_second"] is None and again["probe"] == {}
    assert report(load_config(ReportConfig, "report", [f"run={copy}"]))


def test_another_configuration_is_refused(alone, tiny_shards):
    output, _ = alone
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  model\.width: 16 -> 32\n"):
        main(config_of(tiny_shards, output, "model.width=32"))


# ---- the same numbers on any number of workers


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_workers_give_the_same_losses(stage, alone, tiny_shards, tmp_path, ray_session):
    main(config_of(tiny_shards, tmp_path / "run", "scaling.workers=2", f"deepspeed.zero_stage={stage}"))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone[0]), rel=1e-4)


OBJECTIVES = {
    "dino with sinkhorn and koleo": ["objective.dino.centering=sinkhorn_knopp", "objective.dino.koleo_weight=0.1"],
    "dino_mim": [
        "objective=dino_mim",
        "objective.dino_mim.out_dim=32",
        "objective.dino_mim.hidden=16",
        "objective.dino_mim.bottleneck=8",
        "objective.dino_mim.mask_ratio=[0.2,0.6]",
    ],
    "moby": ["objective=moby", "objective.moby.out_dim=8", "objective.moby.hidden=16", "objective.moby.queue_size=40"],
    "moco_v3": ["objective=moco_v3", "objective.moco_v3.out_dim=8", "objective.moco_v3.hidden=16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_resumes_on_two_workers_with_the_same_losses(name, tiny_shards, tmp_path, ray_session, capsys):
    """One worker runs; then two workers repeat the second half from its checkpoint."""
    settings = [*OBJECTIVES[name], "length.epochs=2", "checkpoint.every_steps=5", "checkpoint.keep=9"]
    main(config_of(tiny_shards, tmp_path / "one", *settings))
    (tmp_path / "two").mkdir()
    for part in ("config.json", "metrics.jsonl", "checkpoints/position-000000000080"):
        (tmp_path / "two" / part).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", tmp_path / "one" / part, tmp_path / "two" / part], check=True)
    main(config_of(tiny_shards, tmp_path / "two", *settings, "scaling.workers=2"))
    assert "continuing from 80 samples seen" in capsys.readouterr().out
    reference = losses(tmp_path / "one")
    assert len(reference) == 180 // 16 and len(set(reference.values())) == len(reference)
    assert losses(tmp_path / "two") == pytest.approx(reference, rel=1e-4)
    newest = [
        CheckpointStore(open_storage(str(tmp_path / run / "checkpoints"))).newest().payload["objective"] for run in ("one", "two")
    ]
    assert newest[0].keys() == newest[1].keys()
    for key, value in newest[0].items():
        if not value.is_floating_point():
            continue  # counters of batches, which are not used
        torch.testing.assert_close(newest[1][key], value, atol=1e-4, rtol=1e-3)


def start(tiny_shards, output, log, *overrides) -> subprocess.Popen:
    """Start the command as a user types it, in its own process group."""
    command = [
        sys.executable,
        "-m",
        "platform.pretrain",
        f"data.uri={tiny_shards.uri}",
        f"output={output}",
        *TINY,
        "runtime.object_store_gib=0.2",
        *overrides,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""},
    )


@pytest.mark.slow
def test_killed_and_started_again(alone, tiny_shards, tmp_path):
    output = tmp_path / "killed"
    with open(tmp_path / "first.log", "wb") as log:
        process = start(tiny_shards, output, log)
        driver, family = psutil.Process(process.pid), set()
        try:
            deadline = time.monotonic() + 200
            while not list(output.glob("checkpoints/*/manifest.json")):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()
                family |= set(driver.children(recursive=True))
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            for member in family:  # Ray's processes; psutil refuses if the id belongs to another process by now
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
            psutil.wait_procs(family, timeout=30)
    assert not (output / "summary.json").exists()
    with open(tmp_path / "second.log", "wb") as log:
        assert start(tiny_shards, output, log).wait(timeout=200) == 0, (tmp_path / "second.log").read_text()
    said = (tmp_path / "second.log").read_text()
    position = int(said.split("continuing from ")[1].split(" ")[0].replace(",", ""))
    assert position % 32 == 0 and 0 < position < 16 * STEPS
    assert foreign_lines(said) == []
    assert (output / "summary.json").exists()
    assert losses(output) == pytest.approx(losses(alone[0]), rel=1e-4)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_says_so(alone, tiny_shards, tmp_path):
    output, log = tmp_path / "interrupted", tmp_path / "log"
    with open(log, "wb") as opened:
        process = start(tiny_shards, output, opened, "checkpoint.every_steps=1000")
        deadline = time.monotonic() + 200
        while b" step 5/" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
        assert process.wait(timeout=100) == 130, log.read_text()
    said = log.read_text()
    assert "Ctrl-C: the workers write a checkpoint and stop" in said and "stopped after a checkpoint; run the same" in said
    assert foreign_lines(said) == []
    assert CheckpointStore(open_storage(str(output / "checkpoints"))).newest().position >= 16 * 5


# ---- selections


def test_a_selection_is_trained_on_in_place(tiny_shards, tmp_path, ray_session):
    units, rows = read_units(tiny_shards), []
    for unit in units[::2]:
        rows += [(unit.file, unit.row_group, row) for row in range(0, unit.num_rows, 2)]
    columns = list(zip(*rows, strict=True))
    selection = open_storage(str(tmp_path / "selection"))
    Path(selection.path).mkdir()
    table = pa.table({"file": columns[0], "row_group": pa.array(columns[1], pa.int32()), "row": pa.array(columns[2], pa.int32())})
    pq.write_table(table, (selection / "index.parquet").path)
    about = {"data": tiny_shards.uri, "data_checksum": read_manifest(tiny_shards).checksum}
    (selection / "manifest.json").write_json(about)
    config = config_of(
        tiny_shards, tmp_path / "run", f"data.selection={selection.uri}", "length.epochs=1", "stream.micro_batches_per_step=1"
    )
    plan, total = plan_of(config)
    assert plan.samples_per_epoch == len(rows) and total == len(rows) // 8 * 8
    keys = [key for task in plan.tasks(0, len(rows)) for key in read_window(plan, task, tiny_shards)["key"].to_pylist()]
    expected = []
    for unit in units[::2]:
        table = pq.ParquetFile((tiny_shards / unit.file).path).read_row_group(unit.row_group, columns=["key"])
        expected += table["key"].to_pylist()[::2]
    assert sorted(keys) == sorted(expected)
    assert main(config)["samples_seen"] == total
    (selection / "manifest.json").write_json(about | {"data_checksum": "0" * 64})
    with pytest.raises(UserError, match=r"made from .* \(checksum 000000000000\)"):
        plan_of(config)


def test_plan_checksum_follows_data_and_selection(tiny_shards):
    units = read_units(tiny_shards)
    import numpy as np

    plans = [
        StreamPlan(tuple(units), 0, 4, 1),
        StreamPlan(tuple(units[1:]), 0, 4, 1),
        StreamPlan((units[0]._replace(rows=np.array([1, 2], np.int32), num_rows=2),), 0, 4, 1),
        StreamPlan((units[0]._replace(rows=np.array([1, 3], np.int32), num_rows=2),), 0, 4, 1),
    ]
    assert len({plan.checksum for plan in plans}) == 4
    assert StreamPlan(tuple(units), 9, 2, 7).checksum == plans[0].checksum


# ---- the probe


def test_a_run_goes_on_with_another_probe_and_without_its_figures(tiny_shards, tiny_labeled, tmp_path, ray_session, capfd):
    """The probe does not change the weights, so it may be mended. Its set has one image a person and no cameras."""
    location = open_storage(str(tmp_path / "alone"))
    single = with_labels(tiny_labeled, location, lambda row, key, split, pid, camid: (row, -1))
    given = ["length.samples=48", "length.epochs=1", "probe.every_steps=1", "scaling.max_failures=0"]
    begun = config_of(tiny_shards, tmp_path / "run", *given, "probe.uri=somewhere", "probe.split=query")
    open_run("pretrain", begun.output, begun, begun.storage)
    summary = main(config_of(tiny_shards, tmp_path / "run", *given, f"probe.uri={single.uri}"))
    rows = read_metrics(open_storage(str(tmp_path / "run")))
    assert summary["samples_seen"] == 48 and summary["probe"] == {} and len(rows) == 3
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text() and not any("probe_mAP" in row for row in rows)
    printed = capfd.readouterr().out
    assert printed.count(f"note: there is no probe_mAP of {single.uri}, split gallery: no image has another image") == 1
    assert printed.count("note: there is no probe_same_camera of") == 1


# ---- refusals before anything starts


def test_missing_data(tmp_path):
    with pytest.raises(StorageError, match=r"there is no data set at .*python -m platform\.ingest"):
        main(config_of(open_storage(str(tmp_path / "nowhere")), tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # a mistyped path does not become the folder's configuration


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["probe.uri={nowhere}"], r"there is no data set at .*nowhere"),
        (["probe.uri={labeled}", "probe.split=test"], r"the probe set .* has no images of split 'test'; its splits are "),
        (["probe.uri={unlabeled}", "probe.split=train"], r"no labels: none of the 90 images of split 'train' has an identity"),
    ],
)
def test_an_unusable_probe_set_is_said_and_binds_nothing(tiny_shards, tiny_labeled, tmp_path, given, message):
    places = {"nowhere": tmp_path / "nowhere", "labeled": tiny_labeled.uri, "unlabeled": tiny_shards.uri}
    with pytest.raises(UserError, match=message):
        main(config_of(tiny_shards, tmp_path / "run", *(each.format(**places) for each in given)))
    assert not (tmp_path / "run").exists()


def test_a_start_past_the_end_of_the_run_binds_nothing(tiny_shards, tmp_path):
    """The length could not be raised in a folder that holds it."""
    given = ["length.samples=160", f"checkpoint.resume_from={tmp_path}/other"]
    config = config_of(tiny_shards, tmp_path / "run", *given)
    plan, _ = plan_of(config)
    CheckpointStore(open_storage(str(tmp_path / "other" / "checkpoints"))).save(160, {}, {"data": plan.checksum})
    with pytest.raises(UserError, match=r"nothing is left to train: .*160 samples, and this run ends at 160\. Raise length"):
        main(config)
    assert not (tmp_path / "run").exists()


def test_fewer_samples_than_a_batch(tiny_shards, tmp_path):
    with pytest.raises(UserError, match="90 samples are fewer than one global batch of 128"):
        main(config_of(tiny_shards, tmp_path / "run", "length.epochs=1", "stream.micro_batch=64"))


def test_workers_that_do_not_share_evenly(tiny_shards, tmp_path):
    assert workers_text([2, 4, 8], 8) == "2, 4 or 8 workers (8 micro-batches a step: 1, 2, 4, 8 workers share them evenly)"
    assert workers_text([1], 2).startswith("1 worker (2 micro-batches")
    with pytest.raises(UserError, match=r"3 workers cannot share 2 micro-batches per step evenly; .*\[1, 2\]"):
        main(config_of(tiny_shards, tmp_path / "run", "scaling.workers=3"))


def test_more_workers_than_the_cluster_holds(tiny_shards, tmp_path, ray_session):
    with pytest.raises(UserError, match=r"16 workers need 16 CPU and 1 to read, this Ray has 4"):
        main(
            config_of(
                tiny_shards, tmp_path / "run", "scaling.workers=16", "stream.micro_batches_per_step=16", "stream.micro_batch=1"
            )
        )


def test_workers_that_leave_no_cpu_to_read(tiny_shards, tmp_path, ray_session):
    """They would wait for their first images forever."""
    given = ["scaling.workers=2", "scaling.cpus_per_worker=2"]
    with pytest.raises(UserError, match=r"2 workers need 4 CPU and 1 to read, this Ray has 4: lower scaling\.workers or"):
        main(config_of(tiny_shards, tmp_path / "run", *given))


def test_crops_must_fit_the_model(tiny_shards, tmp_path):
    with pytest.raises(ConfigError, match=r"augment\.global_size must equal model\.image_size \(64, 32\): got \(32, 32\)"):
        config_of(tiny_shards, tmp_path / "run", "augment.global_size=[32,32]")
    with pytest.raises(ConfigError, match=r"augment\.local_size must fit the model, .*an image of 24 x 16 .* a multiple of 16"):
        config_of(tiny_shards, tmp_path / "run", "augment.local_size=[24,16]")
    config_of(tiny_shards, tmp_path / "run", "augment.local_size=[24,16]", "augment.num_local=0")
    config_of(tiny_shards, tmp_path / "run", "augment.local_size=[24,16]", "model.stride=8")


@pytest.mark.parametrize(
    "given", ["name=moco_v3", "name=moby", "dino.koleo_weight=0.1", "name=dino_mim objective.dino_mim.koleo_weight=0.1"]
)
def test_losses_that_compare_images_need_two_in_a_micro_batch(tiny_shards, tmp_path, given):
    """Batch norms do not: the two global crops of one image are enough for them."""
    given = f"objective.{given}".split()
    with pytest.raises(ConfigError, match=rf"stream\.micro_batch must be at least 2 with {given[-1]}, .*: got 1"):
        config_of(tiny_shards, tmp_path, "stream.micro_batch=1", *given)
    config_of(tiny_shards, tmp_path, "stream.micro_batch=2", *given)
    config_of(tiny_shards, tmp_path, "stream.micro_batch=1", "objective.dino.head_batch_norm=true")


def test_optimizers_that_cannot_be(tiny_shards, tmp_path):
    with pytest.raises(ConfigError, match=r"name must be one of adamw, sgd, lars: got 'adam'"):
        config_of(tiny_shards, tmp_path, "optimizer.name=adam")
    with pytest.raises(ConfigError, match=r"optimizer\.name=lars needs deepspeed\.zero_stage=0, .*: got zero_stage=1"):
        config_of(tiny_shards, tmp_path, "optimizer.name=lars")
    config_of(tiny_shards, tmp_path, "optimizer.name=lars", "deepspeed.zero_stage=0")


def test_a_run_that_diverges_stops_and_leaves_sound_checkpoints(tiny_shards, tmp_path, ray_session):
    output = tmp_path / "run"
    config = config_of(
        tiny_shards,
        output,
        "optimizer.learning_rate=1e35",
        "optimizer.warmup_epochs=0.4",
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
    )
    with pytest.raises(UserError, match=r"the (loss is|gradients are) not finite at step \d+ .*checkpoint\.resume_from"):
        main(config)
    assert not (output / "summary.json").exists()
    for position in (0, 16):  # all published checkpoints are complete; 0 means the newest
        found = CheckpointStore(open_storage(str(output / "checkpoints"))).newest(position)
        assert found is not None and found.position >= 16
        assert all(torch.isfinite(value).all() for value in found.payload["student"]["parameters"].values())


@pytest.mark.slow
def test_another_run_goes_on_from_before(alone, tiny_shards, tmp_path, ray_session, capsys):
    """A run begins from another run's checkpoint with other settings; a folder that is not a run is refused."""
    with pytest.raises(UserError, match=r"no checkpoint under .*/nothing/checkpoints: checkpoint\.resume_from must be"):
        main(config_of(tiny_shards, tmp_path / "none", f"checkpoint.resume_from={tmp_path}/nothing"))
    capsys.readouterr()
    milder = config_of(
        tiny_shards,
        tmp_path / "milder",
        f"checkpoint.resume_from={alone[0]}",
        "checkpoint.resume_position=440",
        "optimizer.learning_rate=0.001",
        "optimizer.name=sgd",
    )
    assert main(milder)["steps"] == STEPS and sorted(losses(tmp_path / "milder")) == [16 * step for step in range(27, STEPS + 1)]
    printed = capsys.readouterr().out
    assert "continuing from 416 samples seen with 1 worker" in printed
    assert printed.count("holds the moments of another optimizer (exp_avg, exp_avg_sq): they start anew") == 1


def test_data_that_changed_under_a_run_is_refused(alone, tiny_shards, tmp_path, ray_session):
    output = tmp_path / "run"
    output.mkdir()
    subprocess.run(["cp", "-r", alone[0] / "checkpoints", output], check=True)
    for manifest in output.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())
        content["metadata"]["data"] = "0" * 64
        manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="are not those that"):
        main(config_of(tiny_shards, output))


# ---- schedules


def test_schedules_of_a_run(tiny_shards, tmp_path):
    config = config_of(tiny_shards, tmp_path, "optimizer.weight_decay=0.0", "optimizer.weight_decay_final=0.4")
    schedules = Schedules(config.optimizer, config.objective.teacher_momentum, 16, samples_per_epoch=90, total=180)
    assert schedules.learning_rate(0) == 0 and schedules.learning_rate(45) == pytest.approx(0.05 * 16 / 256)
    assert schedules.learning_rate(16) == pytest.approx(0.05 * 16 / 256 * 16 / (45 - 16))  # its last step is at the peak
    assert schedules.learning_rate(180) == config.optimizer.learning_rate_final
    assert schedules.weight_decay(0) == 0 and schedules.weight_decay(90) == pytest.approx(0.2)
    assert schedules.teacher_momentum(0) == config.objective.teacher_momentum and schedules.teacher_momentum(180) == 1
