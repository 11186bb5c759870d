"""The numbers of a step do not depend on which worker computed its micro-batches."""

import copy
import itertools

import pytest
import torch
from torch import nn

from platform.engine.errors import UserError
from platform.engine.train.step import StepBatchNorm, StepMeans, StepRows, check_finite


def batches(count: int = 4, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, generator=generator) * (1 + index) for index in range(count)]


class FakeReduce:
    """A stand-in for torch.distributed that adds the given contributions of the other workers."""

    def __init__(self, monkeypatch, others):
        import torch.distributed as dist

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        self.others = iter(others)

    def all_reduce(self, tensor):
        tensor += next(self.others)


# ---- means over a step


def test_step_means_are_over_all_micro_batches():
    means = StepMeans()
    values = [{"loss": torch.tensor(float(i)), "center": torch.full((1, 3), 2.0 * i)} for i in range(4)]
    for value in values:
        means.add(value)
    reduced = means.reduce()
    assert float(reduced["loss"]) == 1.5 and reduced["center"].shape == (1, 3)
    assert torch.equal(reduced["center"], torch.full((1, 3), 3.0))
    means.add({"loss": torch.tensor(9.0)})  # starts afresh
    assert {name: float(value) for name, value in means.reduce().items()} == {"loss": 9.0}


def test_step_means_keep_no_gradient_and_do_not_change_what_is_added():
    source = torch.ones(2, requires_grad=True)
    means = StepMeans()
    means.add({"x": source})
    means.add({"x": source})
    assert not means.reduce()["x"].requires_grad and torch.equal(source, torch.ones(2))


def test_step_means_with_two_workers(monkeypatch):
    """Sums are in one order of names, and counts are summed too, so uneven shares still give the mean."""
    FakeReduce(monkeypatch, [torch.tensor([10.0, 20.0, 5.0, 3.0])])  # b (2), c, then a count of 3
    means = StepMeans()
    means.add({"c": torch.tensor(1.0), "b": torch.tensor([2.0, 4.0])})
    reduced = means.reduce()
    assert reduced["b"].tolist() == [3.0, 6.0] and float(reduced["c"]) == 1.5


# ---- rows of a step


def test_step_rows_of_one_worker_come_in_their_order():
    rows = StepRows()
    parts = [torch.full((2, 3), float(index)) for index in range(3)]
    for part in parts:
        rows.add({"keys": part.requires_grad_()})
    gathered = rows.gather()["keys"]
    assert torch.equal(gathered, torch.cat(parts)) and not gathered.requires_grad
    assert rows.gather() == {}  # starts afresh


def test_step_rows_of_two_workers_come_in_the_order_of_the_micro_batches(monkeypatch):
    """Worker 0 has micro-batches 0 and 2, worker 1 has 1 and 3."""
    import torch.distributed as dist

    parts = [torch.full((2, 1), float(index)) for index in range(4)]

    def all_gather(outputs, own):
        outputs[0].copy_(own)
        outputs[1].copy_(torch.stack(parts[1::2]))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    rows = StepRows()
    for part in parts[::2]:
        rows.add({"keys": part})
    assert torch.equal(rows.gather()["keys"], torch.cat(parts))


# ---- batch norm once per step


def run_step(order, momentum=0.1):
    """The layer after one step in which the micro-batches come in `order`."""
    layer = nn.BatchNorm1d(3, momentum=momentum)
    norms, means = StepBatchNorm(layer), StepMeans()
    outputs = {}
    for index in order:
        outputs[index] = layer(batches()[index])
        means.add(norms.micro_batch_done())
    norms.commit(means.reduce())
    return layer, outputs


def test_batch_norm_equals_the_plain_formula():
    layer, outputs = run_step(range(4))
    mean = torch.stack([batch.mean(0) for batch in batches()]).mean(0)
    variance = torch.stack([batch.var(0, correction=1) for batch in batches()]).mean(0)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance, atol=1e-6, rtol=1e-6)
    for index, batch in enumerate(batches()):  # each micro-batch is normalized by itself
        expected = (batch - batch.mean(0)) / (batch.var(0, correction=0) + layer.eps).sqrt()
        torch.testing.assert_close(outputs[index], expected)


def test_batch_norm_does_not_depend_on_the_order():
    reference, _ = run_step(range(4))
    for order in itertools.islice(itertools.permutations(range(4)), 1, None, 7):
        layer, _ = run_step(order)
        torch.testing.assert_close(layer.running_mean, reference.running_mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(layer.running_var, reference.running_var, atol=1e-6, rtol=1e-6)


def test_batch_norm_does_not_depend_on_the_sharing(monkeypatch):
    reference, _ = run_step(range(4))
    sums = []
    for batch in batches()[1::2]:  # contribution of the other worker, which has micro-batches 1 and 3
        sums.append(torch.cat([batch.mean(0), batch.var(0)]))
    FakeReduce(monkeypatch, [torch.cat([sum(sums), torch.tensor([2.0])])])  # ..., count
    layer, _ = run_step((0, 2))
    torch.testing.assert_close(layer.running_mean, reference.running_mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer.running_var, reference.running_var, atol=1e-6, rtol=1e-6)


def test_several_forward_passes_of_a_micro_batch_count_once():
    layer = nn.BatchNorm1d(3, momentum=0.5)
    norms, means = StepBatchNorm(layer), StepMeans()
    first, second, third = batches(3)
    layer(first), layer(second)  # crops of two sizes
    means.add(norms.micro_batch_done())
    layer(third)
    means.add(norms.micro_batch_done())
    norms.commit(means.reduce())
    expected = ((first.mean(0) + second.mean(0)) / 2 + third.mean(0)) / 2 * 0.5
    torch.testing.assert_close(layer.running_mean, expected, atol=1e-6, rtol=1e-6)


def test_evaluation_between_steps_leaves_no_trace():
    layer = nn.BatchNorm1d(3)
    norms = StepBatchNorm(nn.Sequential(layer))
    layer(batches()[0])
    norms.commit(norms.micro_batch_done())
    before = copy.deepcopy(layer.state_dict())
    layer.eval()
    layer(batches()[1])
    norms.commit(norms.micro_batch_done())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_reload_goes_on_from_restored_statistics():
    layer, _ = run_step(range(2))
    other = nn.BatchNorm1d(3)
    norms = StepBatchNorm(other)
    other.load_state_dict(layer.state_dict())
    norms.reload()
    other(batches()[2])
    norms.commit(norms.micro_batch_done())
    expected = layer.running_mean.lerp(batches()[2].mean(0), 0.1)
    torch.testing.assert_close(other.running_mean, expected, atol=1e-6, rtol=1e-6)


def test_a_loss_that_is_not_finite_is_named_with_its_place_and_terms():
    terms = {"loss": torch.tensor(float("inf")), "center_norm": torch.tensor(2.5)}
    with pytest.raises(UserError, match=r"^the loss is not finite at step 7 \(loss=inf, center_norm=2\.5\)\. Do less$"):
        check_finite(terms["loss"], terms, "at step 7", "Do less")
    check_finite(torch.tensor(1.0), terms, "at step 7", "Do less")
