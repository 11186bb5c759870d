"""A sweep in which the worker of a trial or its node dies: the trial goes on from its checkpoint, and no result changes."""

import json
import time
from pathlib import Path

import psutil
import pytest

from platform.engine.config.compose import load_config
from platform.tune import TuneConfig, main
from tests.platform.processes import kill, start
from tests.platform.survival import Nodes
from tests.tiny import FINETUNE

WORKER = "ray::RayTrainWorker"


@pytest.mark.slow  # two sweeps, one of them with a Ray of its own
def test_the_worker_of_a_trial_is_killed(tmp_path: Path, ray_session, tiny_backbone, tiny_labeled):
    """It is killed after the first epochs of the first of two trials."""
    common = [f"finetune.{each}" for each in (f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FINETUNE)]
    common += ["finetune.setting=supervised", "finetune.supervised.epochs=12", "space.supervised.learning_rate=[1e-4,1e-3]"]
    common += ["finetune.scaling.max_failures=3"]
    undisturbed = main(load_config(TuneConfig, "tune", [*common, f"output={tmp_path}/undisturbed"]))
    output, log = tmp_path / "sweep", tmp_path / "sweep.log"
    with log.open("wb") as stream:
        process = start("tune", [*common, f"output={output}", "verbose=true"], stream)
        try:
            wait_for(lambda: list(output.glob("trials/*/checkpoints/position-*")), process, log)
            [worker] = [each for each in psutil.Process(process.pid).children(recursive=True) if is_training(each)]
            worker.kill()
            assert process.wait(400) == 0, log.read_text()
        finally:
            if process.poll() is None:
                kill(process)
    text = log.read_text()
    assert "continuing after phase 1, epoch" in text, text
    found = main(load_config(TuneConfig, "tune", [*common, f"output={output}"]))
    assert [row["weights"] for row in found["trials"]] == [row["weights"] for row in undisturbed["trials"]]
    assert [row["mAP"] for row in found["trials"]] == [row["mAP"] for row in undisturbed["trials"]]


@pytest.mark.slow  # a cluster of its own
@pytest.mark.timeout(600)
def test_the_node_of_a_trial_is_removed(tmp_path: Path, tiny_backbone, tiny_labeled):
    """With it goes the worker and, if it is there, the function that waits for it."""
    common = [f"finetune.{each}" for each in (f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FINETUNE)]
    common += ["finetune.setting=supervised", "finetune.supervised.epochs=12", "space.supervised.learning_rate=[1e-4]"]
    common += ["concurrent=1", "finetune.scaling.max_failures=5"]
    nodes, log = Nodes(), tmp_path / "sweep.log"
    try:
        nodes.have(2)
        # More than the head has, and not all that a node has: the function of the trial takes a little of one.
        place = [f"runtime.address={nodes.cluster.address}", f"finetune.scaling.cpus_per_worker={nodes.WORKER_CPUS - 0.5:g}"]
        sides = {}
        for name in ("undisturbed", "sweep"):
            output = tmp_path / name
            with log.open("wb") as stream:
                process = start("tune", [*common, *place, f"output={output}"], stream)
                try:
                    if name == "sweep":
                        wait_for(lambda: list(output.glob("trials/*/checkpoints/position-*")), process, log)  # noqa: B023
                        [node] = [each for each in nodes.workers if nodes.training_process(each)]
                        nodes.remove(node)
                    assert process.wait(300) == 0, log.read_text()
                finally:
                    if process.poll() is None:
                        kill(process)
            sides[name] = json.loads((output / "summary.json").read_text())["trials"]
    finally:
        nodes.close()
    assert [row["weights"] for row in sides["sweep"]] == [row["weights"] for row in sides["undisturbed"]]
    assert [row["mAP"] for row in sides["sweep"]] == [row["mAP"] for row in sides["undisturbed"]]


def is_training(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray Train."""
    try:
        return WORKER in " ".join(process.cmdline())
    except psutil.Error:
        return False


def wait_for(condition, process, log: Path, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.02)
