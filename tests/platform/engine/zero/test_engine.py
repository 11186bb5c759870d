"""DeepSpeed state is independent of the world size: one and two processes over gloo exchange consolidated states."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from platform.engine.zero.engine import set_schedules, share_device
from reidssl.optim import clip_per_tensor_, sgd_groups
from reidssl.schedules import ReidCosine
from tests.platform.engine import zero_worker as worker
from tests.tiny import ON_CPU

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[int, dict]:
    """Results of the runs with 1 and with 2 processes. Each of the three processes runs every setting."""
    folder = tmp_path_factory.mktemp("zero")
    environment = os.environ | ON_CPU | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.platform.engine.zero_worker", str(rank), str(world), folder],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for world in (1, 2)
        for rank in range(world)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in processes:
            process.kill()
    return {world: json.loads((folder / f"seen-{world}.json").read_text()) for world in (1, 2)}


def plain_losses(optimizer_name: str, clip: float, per_tensor: bool, then: str = "") -> list[float]:
    """Losses of the same training in ordinary PyTorch: the mean over micro-batches, clipping, and the optimizer step.

    then: an optimizer that goes on after the cut, with moments of its own.
    """
    model = worker.Model()
    optimizer = worker.optimizer_for(model, optimizer_name)
    losses = []
    for step in range(worker.STEPS):
        if then and step == worker.CUT:
            optimizer = worker.optimizer_for(model, then)
        learning_rate, weight_decay = worker.schedule(step)
        for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0, weight_decay), strict=True):
            group["lr"], group["weight_decay"] = learning_rate, decay
        loss = sum(worker.loss_of(model, step, index) for index in range(worker.MICRO_BATCHES)) / worker.MICRO_BATCHES
        optimizer.zero_grad()
        loss.backward()
        if step < worker.RESTS_UNTIL:
            model.late.weight.grad = None  # as released: the optimizer skips it
        if per_tensor:
            clip_per_tensor_(model.parameters(), clip)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("name", [name for name, (config, _) in worker.SETTINGS.items() if config.zero_stage == 0])
def test_no_step_waits_for_the_device(seen, name):
    """DeepSpeed's own timer would wait twice a micro-batch, and what is queued ahead would wait, too."""
    assert [seen[world][f"{name} waits"] for world in (1, 2)] == [0, 0]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", [name for name in worker.SETTINGS if "bf16" not in name])
def test_training_equals_plain_pytorch(seen, name, world):
    config, optimizer = worker.SETTINGS[name]
    expected = plain_losses(optimizer, config.clip.norm, config.clip.per_tensor)
    assert seen[world][f"{name} start"] + seen[world][f"{name} end"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_continues_with_another_number_of_workers(seen, name):
    for world in (1, 2):
        uninterrupted, continued = seen[3 - world][f"{name} end"], seen[world][f"{name} continued"]
        assert continued == pytest.approx(uninterrupted, rel=1e-4 if "bf16" in name else 1e-5)
        assert seen[world][f"{name} difference after restore"] == 0.0


@pytest.mark.parametrize("stages", ["zero1 to zero3", "zero3 to zero2", "zero2 to zero0", "zero0 to zero1"])
def test_continues_at_another_stage(seen, stages):
    for world in (1, 2):
        assert seen[world][stages] == pytest.approx(seen[world]["zero1-adamw end"], rel=1e-5)


MOMENTS = {"adamw": ["exp_avg", "exp_avg_sq"], "sgd": ["momentum_buffer"], "lars": ["momentum_buffer"]}


@pytest.mark.parametrize(("source", "target", "stage"), worker.SWITCHES)
def test_another_optimizer_begins_with_moments_of_its_own(seen, source, target, stage):
    """SGD and LARS give theirs the same name, but LARS scales the gradients in it."""
    before = source.split("-")[1]
    expected = plain_losses(before, 0.5, False, then=target)[worker.CUT :]
    for world in (1, 2):
        name = f"{source} to zero{stage}-{target}"
        assert seen[world][name] == pytest.approx(expected, rel=1e-5)
        assert seen[world][f"{name} foreign"] == MOMENTS[before] and seen[world][f"{name} moments"] == MOMENTS[target]


def test_a_checkpoint_of_an_earlier_version_does_not_name_its_optimizer(seen):
    assert all(seen[world]["unnamed foreign"] == [["momentum_buffer"], []] for world in (1, 2))


def test_bf16_computes_near_fp32_but_not_the_same(seen):
    exact = seen[1]["zero1-adamw start"]
    rounded = seen[1]["zero1-adamw-bf16 start"]
    assert rounded != exact and rounded == pytest.approx(exact, rel=5e-3)


def test_clipping_makes_a_difference(seen):
    settings = ("zero0-adamw", "zero0-sgd", "zero0-adamw-per-tensor")
    assert len({round(seen[1][f"{name} end"][-1], 4) for name in settings}) == 3


def test_another_model_is_refused_with_the_list(seen):
    for world in (1, 2):
        text = seen[world]["refusal"]
        assert "8 differences" in text and "first.weight: checkpoint (7, 5), model (9, 5)" in text
        assert "another output" in text


def test_a_checkpoint_of_an_earlier_version_is_refused_by_all_workers(seen):
    assert all("the checkpoint is of an earlier version" in seen[world]["old"] for world in (1, 2))


def test_buffers_of_the_configuration_are_neither_saved_nor_restored(seen):
    """A payload of an earlier version holds them; one without a buffer that is needed is refused."""
    for world in (1, 2):
        assert seen[world]["buffers"] == ["norm.num_batches_tracked", "norm.running_mean", "norm.running_var"]
        assert seen[world]["share"] == 0.75
        assert "1 differences" in seen[world]["no buffer"]
        assert "norm.running_mean: checkpoint has none, model (7,)" in seen[world]["no buffer"]


def test_weight_decay_schedule_may_start_at_zero_and_spares_the_other_group():
    class Engine:
        optimizer = torch.optim.SGD(
            [
                {"params": [torch.zeros(1)], "weight_decay": 1.0, "lr_factor": 2.0},
                {"params": [torch.zeros(1)], "weight_decay": 0.0},
            ],
            lr=0.0,
        )

    for decay in (0.0, 0.3):
        set_schedules(Engine, 0.5, decay)
        assert [group["weight_decay"] for group in Engine.optimizer.param_groups] == [decay, 0.0]
    assert [group["lr"] for group in Engine.optimizer.param_groups] == [1.0, 0.5]


def test_biases_follow_the_released_supervised_schedule_and_not_twice_that_of_weights():
    """Both begin at 0.01 of the weights' rate and end at 0.002 of it; layer decay multiplies what comes out."""
    model = nn.Linear(2, 2)

    class Engine:
        optimizer = torch.optim.SGD(sgd_groups(model.named_parameters(), 4e-4, 1e-4))

    schedule, seen = ReidCosine(4e-4, total=120, warmup=20), []
    Engine.optimizer.param_groups[1]["lr_factor"] = 0.5
    for epoch in (0, 10, 60):
        set_schedules(Engine, partial(schedule, epoch))
        seen.append([group["lr"] for group in Engine.optimizer.param_groups])
    assert seen == [
        pytest.approx([weights, 0.5 * biases]) for weights, biases in ((4e-6, 4e-6), (2.02e-4, 4.02e-4), (2.004e-4, 4.004e-4))
    ]


@pytest.mark.parametrize("stage", range(4))
def test_gradients_that_are_not_finite_stop_before_the_update(seen, stage):
    """This holds even if the loss is finite and only one process has such gradients."""
    for world in (1, 2):
        assert seen[world][f"zero{stage} refusal of gradients"].startswith("the gradients are not finite at step 2 (norm ")
        assert seen[world][f"zero{stage} moved by them"] == 0.0


def test_deepspeed_is_given_the_gpu_of_the_worker(monkeypatch):
    """Ray may assign the first GPU to the second worker of a machine. DeepSpeed reads LOCAL_RANK."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    share_device(torch.device("cpu"))
    assert os.environ["LOCAL_RANK"] == "1"
    share_device(torch.device("cuda", 0))
    assert os.environ["LOCAL_RANK"] == "0"
