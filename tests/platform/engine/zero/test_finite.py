"""Losses and gradients that are not finite never reach the weights, with and without an optimizer masked on the device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ON_CPU

ROOT = Path(__file__).resolve().parents[4]
# In its own process, because DeepSpeed needs a process group. GPUs use fused AdamW; here a CPU uses it explicitly.
PROGRAM = """
import json, os, sys, tempfile
import torch, torch.distributed as dist
from platform.engine.zero import engine as zero
from platform.engine.errors import UserError
from platform.engine.schemas.training_settings import ClipConfig
from platform.engine.zero.finite import Finite

os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/rendezvous", rank=0, world_size=1)
found = {}
prepared = []  # the host's work while the device computes
for fused in (True, False):
    for kind in ("loss", "gradient"):
        model = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(model.weight, 0.5)
        config = zero.EngineSettings(zero_stage=0, clip=ClipConfig(norm=1.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        engine = zero.build_engine(model, optimizer, config, micro_batch=1, accumulation=2)
        finite, moved, said = Finite(engine, config, 3, "Stop."), [], ""
        prepared.clear()
        try:
            for step in range(1, 5):
                before = model.weight.detach().clone()
                for part in range(2):
                    loss = engine(torch.ones(1, 3)).square().sum()
                    if (step, part) == (2, 0) and kind == "loss":
                        loss = loss + float("inf")  # its gradient is finite
                    if (step, part) == (2, 0) and kind == "gradient":
                        loss = loss + (loss - loss.detach()).abs().sqrt()  # 0, with a slope of 0 * infinity
                    engine.backward(finite.loss(loss, {"loss": loss.detach()}, step, lambda: prepared.append(step)))
                    finite.step(step)
                moved.append(not torch.equal(model.weight, before))
                if step == 3:
                    finite.check()
        except UserError as error:
            said = str(error)
        found[f"{kind} {'masked' if fused else 'looked at'}"] = {
            "masks": finite.masks, "prepared": list(prepared),
            "moved": moved, "said": said, "finite": bool(torch.isfinite(model.weight).all())}
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("finite") / "found.json"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, file],
        cwd=ROOT,
        env=os.environ | ON_CPU | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(file.read_text())


def test_a_masked_step_is_passed_over_and_named_when_the_log_reads(found):
    told = {
        "loss": "the loss is not finite at step 2 on rank 3 (loss=inf). Stop.",
        "gradient": "the gradients are not finite at step 2 (norm nan); the weights were left as they were. Stop.",
    }
    for kind, named in told.items():
        seen = found[f"{kind} masked"]
        assert seen["prepared"] == []  # nothing waits within a step
        assert seen["masks"] and seen["finite"] and seen["said"] == named
        assert seen["moved"] == [True, False, True]  # the third is fine; a check after it stops the run


def test_otherwise_the_first_broken_micro_batch_stops_the_run(found):
    for kind, named in (
        ("loss", "the loss is not finite at step 2 on rank 3 (loss=inf)"),
        ("gradient", "the gradients are not finite at step 2 (norm nan)"),
    ):
        seen = found[f"{kind} looked at"]
        assert not seen["masks"] and seen["finite"] and seen["said"].startswith(named)
        assert seen["moved"] == [True]
        # Also before the micro-batch that is refused: the host prepares the next one before it looks at the loss.
        assert seen["prepared"] == ([1, 1, 2] if kind == "loss" else [1, 1, 2, 2])
