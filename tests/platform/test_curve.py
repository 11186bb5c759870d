"""The loss curve, weights and samples are the same on any and on a changing number of workers, at any ZeRO stage."""

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import pytest
import torch

from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from platform.engine.train.checkpoints import CheckpointStore
from tests.platform.curve_worker import BATCH
from tests.tiny import ON_CPU

ROOT = Path(__file__).resolve().parents[2]


def work(folder: Path, world: int, data: str, steps: int, runs: list, overrides: tuple[str, ...] = (), **variables: str) -> None:
    """`world` processes execute `runs` ([name, ZeRO stage, step to crash in, *overrides]) one after the other."""
    order = {"world": world, "data": data, "steps": steps, "runs": runs, "overrides": overrides}
    spawn("tests.platform.curve_worker", folder, world, order, **variables)


def spawn(module: str, folder: Path, world: int, order: dict, **variables: str) -> None:
    """Run `world` processes `python -m module RANK FOLDER ORDER` to their end; they find each other through the folder.

    They see no GPU, unless `variables`, further environment variables, have CUDA_VISIBLE_DEVICES.
    """
    environment = os.environ | ON_CPU | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {"RENDEZVOUS": f"rendezvous-{uuid.uuid4()}"} | variables
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), folder, json.dumps(order)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=400)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in processes:
            process.kill()


def runs_on(folder: Path, data: str, stages: tuple[int, ...], worlds: tuple[int, ...], steps: int, *overrides: str) -> Path:
    """Uninterrupted runs `<stage>-<world>`, and `<stage>-changed`, which crashes and continues with another number of workers."""
    for place, world in enumerate(worlds):
        last = place == len(worlds) - 1
        crash = 0 if last else (place + 1) * steps // len(worlds) - 1
        runs = [[f"{stage}-{world}", stage, 0] for stage in stages]
        runs += [[f"{stage}-changed", stage, crash] for stage in stages]
        work(folder, world, data, steps, runs, overrides)
    return folder


def losses(run: Path) -> dict[int, float]:
    return {row["position"]: row["loss"] for row in read_metrics(open_storage(str(run)))}


def check(folder: Path, stages: tuple[int, ...], worlds: tuple[int, ...], steps: int) -> None:
    """Compare all runs with that of a single worker at ZeRO 0."""
    reference, weights = losses(folder / f"0-{worlds[0]}"), final_weights(folder / f"0-{worlds[0]}")
    assert list(reference) == [BATCH * step for step in range(1, steps + 1)]
    assert len(set(reference.values())) > steps / 2  # it trains
    for stage in stages:
        for kind in (*worlds, "changed"):
            run = folder / f"{stage}-{kind}"
            assert losses(run) == pytest.approx(reference, rel=1e-4), run.name
            assert distance(final_weights(run), weights) < 1e-3, run.name
            check_audit(run / "audit", steps)
    # The inputs of the workers are bit-identical: the keys and pixels of every micro-batch equal those of one run.
    assert all(
        audit(folder / f"{stage}-{kind}" / "audit") == audit(folder / f"0-{worlds[0]}" / "audit")
        for stage in stages
        for kind in (*worlds, "changed")
    )


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights of student and teacher in the newest checkpoint."""
    found = CheckpointStore(open_storage(str(run / "checkpoints"))).newest()
    assert found is not None
    return found.payload["student"]["parameters"] | {
        name: value for name, value in found.payload["objective"].items() if value.is_floating_point() and value.dim()
    }


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all weights together, relative to the norm of the weights.

    Not computed for each tensor: where a gradient is nearly 0, Adam turns its rounding into a full step, and a bias near 0
    differs by several percent of its value.
    """
    assert one.keys() == other.keys()
    both = [torch.cat([each[name].flatten().double() for name in other]) for each in (one, other)]
    return float((both[0] - both[1]).norm() / both[1].norm())


def audit(folder: Path) -> dict[int, list]:
    """Micro-batch -> (epoch, key, CRC-32 of the pixels) of its samples; asserts that repeated micro-batches are the same."""
    found = {}
    for file in sorted(folder.iterdir()):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(record == records[0] for record in records), file
        found[int(file.stem.rpartition("-")[2])] = records[0]
    return found


def check_audit(folder: Path, steps: int) -> None:
    """Assert that every image occurs exactly once in every whole epoch."""
    found = audit(folder)
    assert sorted(found) == list(range(steps * 4))
    seen = Counter((epoch, key) for samples in found.values() for epoch, key, _ in samples)
    assert set(seen.values()) == {1} and sum(seen.values()) == steps * BATCH
    for epoch in range(steps * BATCH // 90):
        assert sum(count for (of, _), count in seen.items() if of == epoch) == 90


def test_one_and_two_workers_and_a_change_between(tmp_path, tiny_shards):
    """12 steps: two epochs, a crash in the second step after a checkpoint, resumed with two workers."""
    stages, worlds, steps = (0, 3), (1, 2), 12
    check(runs_on(tmp_path, tiny_shards.uri, stages, worlds, steps), stages, worlds, steps)
    # The changed run computed some steps twice, with 1 and then with 2 workers.
    crashed = (tmp_path / "0-changed" / "audit" / "micro-batch-000000016.jsonl").read_text().splitlines()
    assert len(crashed) == 2


def test_a_run_goes_on_with_and_without_the_compiler(tmp_path, tiny_shards):
    """Drop path has another form in compiled blocks. Here they take that form, and are not compiled, which takes minutes."""
    runs = [
        ["plain", 0, 0, "length.samples=32", "compile=off"],
        ["compiled", 0, 0, "length.samples=64", "compile=on", f"checkpoint.resume_from={tmp_path / 'plain'}"],
        ["again", 0, 0, "length.samples=96", "compile=off", f"checkpoint.resume_from={tmp_path / 'compiled'}"],
    ]
    changed = ("checkpoint.every_steps=2", "model.depth=2")  # the first block drops no paths
    work(tmp_path, 1, tiny_shards.uri, 6, runs, changed, TORCHDYNAMO_DISABLE="1")
    assert [list(losses(tmp_path / run[0])) for run in runs] == [[16, 32], [48, 64], [80, 96]]


@pytest.mark.slow
def test_with_batch_norm_in_the_head(tmp_path, tiny_shards):
    """At a lower learning rate: batch norm of the few rows of a micro-batch of 4 images makes rounding grow."""
    stages, worlds, steps = (0,), (1, 2), 12
    changed = ("objective.dino.head_batch_norm=true", "optimizer.learning_rate=0.002")
    check(runs_on(tmp_path, tiny_shards.uri, stages, worlds, steps, *changed), stages, worlds, steps)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_on_one_two_and_four_workers_over_forty_steps(tmp_path, tiny_shards):
    stages, worlds, steps = (0, 1, 2, 3), (1, 2, 4), 40
    check(runs_on(tmp_path, tiny_shards.uri, stages, worlds, steps), stages, worlds, steps)
