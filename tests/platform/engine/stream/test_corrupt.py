"""Unreadable samples are counted once and reported once; too many of them stop the run; counts survive a restart."""

import pytest
import torch
import torch.distributed as dist

from platform.engine.errors import UserError
from platform.engine.stream.corrupt import CorruptSamples


@pytest.fixture(autouse=True)
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(samples: CorruptSamples, problems: list[list[str]], epoch: int = 0) -> list[str]:
    """One optimizer step with these problems in its micro-batches."""
    counts = [samples.add({"problem": found}) for found in problems]
    return samples.step(torch.stack(counts).mean(), len(problems), epoch)


def test_nothing_found():
    samples = CorruptSamples(0.0, 100)
    assert step(samples, [["", ""], ["", ""]]) == [] and samples.total == 0


def test_counted_and_named_once():
    samples = CorruptSamples(0.5, 100)
    assert step(samples, [["a: torn", ""], ["", "a: torn"], ["b: torn", ""]]) == ["a: torn", "b: torn"]
    assert step(samples, [["a: torn", "c: torn"], ["", ""], ["", ""]]) == ["c: torn"]
    assert samples.total == 5 and samples.reasons == ["a: torn", "b: torn", "c: torn"]


def test_the_limit_is_a_share_of_an_epoch():
    samples = CorruptSamples(0.02, 100)
    step(samples, [["a", "a"]], epoch=0)
    step(samples, [["a", "a"]], epoch=1)  # the count starts again in a new epoch
    with pytest.raises(
        UserError,
        match=r"3 of the 100 samples of epoch 1 cannot be read, more than "
        r"stream\.max_corrupt_share allows \(2\): a",
    ):
        step(samples, [["a"]], epoch=1)
    assert samples.total == 5


def test_a_restart_goes_on_counting():
    samples = CorruptSamples(0.02, 100)
    step(samples, [["a", "a"]])
    again = CorruptSamples(0.02, 100, samples.state())
    assert again.total == 2
    with pytest.raises(UserError, match="3 of the 100 samples of epoch 0"):
        step(again, [["a"]])
