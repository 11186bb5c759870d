"""What a run says of a checkpoint whose state is not its own: moments of another optimizer, another state of the objective."""

import pytest
import torch
import torch.distributed as dist

from platform.engine.config.compose import to_plain
from platform.engine.errors import UserError
from platform.engine.train import resume
from platform.engine.train.resume import ResumePoint
from platform.engine.train.step import StepBatchNorm
from reidssl.objectives import build_objective
from reidssl.objectives.objective_config import MobyConfig, ObjectiveConfig
from tests.tiny import TINY_VIT


@pytest.fixture(autouse=True)
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def moby(queue_size: int) -> ObjectiveConfig:
    return ObjectiveConfig(name="moby", moby=MobyConfig(out_dim=8, hidden=8, queue_size=queue_size))


def restored(monkeypatch, saved: ObjectiveConfig, own: ObjectiveConfig, foreign: list[str], metadata: dict) -> None:
    """Restore a state that was saved with the settings `saved` into an objective with the settings `own`."""
    monkeypatch.setattr(resume, "restore_engine", lambda engine, payload: foreign)
    payload = {"student": {}, "objective": build_objective(TINY_VIT, saved, seed=1).state_tensors()}
    objective = build_objective(TINY_VIT, own, seed=0)
    resume.restore(ResumePoint(432, metadata, payload), None, objective, StepBatchNorm(objective), own)
    assert all(torch.equal(value, payload["objective"][name]) for name, value in objective.state_tensors().items())


def test_moments_of_another_optimizer_are_told_in_a_line(monkeypatch, capsys):
    restored(monkeypatch, moby(6), moby(6), ["exp_avg", "exp_avg_sq"], {})
    line = (
        "note: the checkpoint after 432 samples holds the moments of another optimizer (exp_avg, exp_avg_sq): they start anew\n"
    )
    assert capsys.readouterr().out == line
    restored(monkeypatch, moby(6), moby(6), [], {})
    assert capsys.readouterr().out == ""


def test_another_state_of_the_objective_names_the_setting(monkeypatch):
    metadata = {"config": {"objective": to_plain(moby(6))}}
    message = r"fit the objective: queue has shape \(2, 6, 8\) .* \(2, 4, 8\) here.*\n  objective\.moby\.queue_size: 6 -> 4\nGive"
    with pytest.raises(UserError, match=message):
        restored(monkeypatch, moby(6), moby(4), [], metadata)
    with pytest.raises(UserError, match=r"the configuration of the run\nGive this run another output"):
        restored(monkeypatch, moby(6), moby(4), [], {})
    message = r"belongs to another objective or model.*\n  objective\.name: 'moby' -> 'dino'\nGive"
    with pytest.raises(UserError, match=message):
        restored(monkeypatch, moby(6), ObjectiveConfig(moby=moby(6).moby), [], metadata)
