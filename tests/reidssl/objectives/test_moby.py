"""MoBY against a plain loop over pairs, images and keys; its queue; the common interface."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Progress
from reidssl.objectives.moby import Moby, MobyConfig

VIT = VitConfig(width=16, depth=2, heads=2, patch_size=16, image_size=(32, 32), stem="patch")
CONFIG = MobyConfig(out_dim=8, hidden=12, queue_size=10, temperature=0.3)
PROGRESS = Progress(0, 10, 100)


def crops(count: int = 2, images: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, 32, 32, generator=generator) for _ in range(count)]


def keys_of(images: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(images, 2, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("num_crops", [2, 4])
def test_loss_equals_a_loop(num_crops):
    objective = Moby(VIT, CONFIG, seed=3)
    views = crops(num_crops)
    output = objective(objective.student, views, PROGRESS)
    queries = F.normalize(objective.student(views).logits, dim=1).chunk(num_crops)
    keys = F.normalize(objective.teacher(views[:2]).logits, dim=1).chunk(2)
    losses, nearest = [], []
    for view, query in enumerate(queries):
        for other, key in enumerate(keys):
            if view == other:
                continue
            for image in range(4):
                own = math.exp(float(query[image] @ key[image]) / 0.3)
                others = [math.exp(float(query[image] @ old) / 0.3) for old in objective.queue[other]]
                losses.append(-math.log(own / (own + sum(others))))
                nearest.append(own > max(others))
    assert output.loss.item() == pytest.approx(2 * sum(losses) / len(losses), rel=1e-4)
    assert output.terms["accuracy"].item() == pytest.approx(sum(nearest) / len(nearest))
    assert 0 <= output.terms["teacher_entropy"] <= math.log(11) + 1e-6
    torch.testing.assert_close(output.rows["keys"], torch.stack(keys, dim=1))
    assert not output.rows["keys"].requires_grad and output.statistics == {}


def test_gradient_equals_that_of_the_plain_sum():
    """Each direction separately, with cross_entropy on the rows of scores.

    The networks compute in double precision, because the batch norms over four images make single precision depend on the number
    of threads.
    """
    objective = Moby(VIT, CONFIG, seed=3).double()
    views = [view.double() for view in crops()]
    objective(objective.student, views, PROGRESS).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in objective.student.named_parameters()}
    objective.student.zero_grad()
    queries = F.normalize(objective.student(views).logits, dim=1).chunk(2)
    keys = F.normalize(objective.teacher(views).logits, dim=1).chunk(2)
    total = 0.0
    for q, k, queue in ((queries[0], keys[1], objective.queue[1]), (queries[1], keys[0], objective.queue[0])):
        rows = [torch.cat([(q[i] @ k[i]).view(1), queue @ q[i]]) / 0.3 for i in range(4)]
        total = total + F.cross_entropy(torch.stack(rows), torch.zeros(4, dtype=torch.int64))
    total.backward()
    for name, parameter in objective.student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_autocast_leaves_the_scores_in_single_precision():
    """With networks in bf16 the loss of their outputs stays exact. At a low temperature bf16 scores would be visible."""
    objective, views = Moby(VIT, dataclasses.replace(CONFIG, temperature=0.02), seed=3), crops()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        loss = objective(objective.student, views, PROGRESS).loss
        student, teacher = objective.student(views).logits, objective.teacher(views).logits
    q1, q2 = F.normalize(student.double(), dim=1).chunk(2)
    k1, k2 = F.normalize(teacher.double(), dim=1).chunk(2)
    expected = 0.0
    for q, k, queue in ((q1, k2, objective.queue[1]), (q2, k1, objective.queue[0])):
        scores = torch.cat(((q * k).sum(dim=1, keepdim=True), q @ queue.double().T), dim=1) / 0.02
        expected += F.cross_entropy(scores, torch.zeros(4, dtype=torch.int64)).item()
    assert student.dtype == torch.bfloat16 and loss.item() == pytest.approx(expected, rel=1e-5)


def test_queue_replaces_the_oldest_first():
    objective = Moby(VIT, CONFIG)
    expected = [[row.clone() for row in view] for view in objective.queue]  # oldest first
    for seed, images in enumerate([4, 4, 3, 10, 1, 25]):
        keys = keys_of(images, seed)
        objective.update({}, {"keys": keys})
        for view in range(2):
            expected[view] = (expected[view] + list(keys[:, view]))[-10:]
        oldest_first = objective.queue.roll(-int(objective.position), dims=1)
        torch.testing.assert_close(oldest_first, torch.stack([torch.stack(view) for view in expected]))


def test_one_update_of_a_step_equals_its_micro_batches_in_order():
    whole, parts = Moby(VIT, CONFIG), Moby(VIT, CONFIG)
    keys = keys_of(6, 1)
    whole.update({}, {"keys": keys})
    for part in keys.split(2):
        parts.update({}, {"keys": part})
    assert torch.equal(whole.queue, parts.queue) and int(whole.position) == int(parts.position) == 6
    other = Moby(VIT, CONFIG)
    other.update({}, {"keys": keys.flip(0)})
    assert not torch.equal(whole.queue, other.queue)


def test_the_loss_of_a_step_uses_the_queue_before_it():
    objective = Moby(VIT, CONFIG, seed=1)
    before = objective.queue.clone()
    first = objective(objective.student, crops(), PROGRESS)
    assert torch.equal(objective.queue, before)
    objective.update(first.statistics, first.rows)
    assert objective(objective.student, crops(), PROGRESS).loss != first.loss


def test_drop_path_is_the_students_alone_or_as_set():
    student = dataclasses.replace(VIT, drop_path=0.5)
    views = crops(images=8)
    for rate in (0.0, 0.5):
        objective = Moby(student, dataclasses.replace(CONFIG, teacher_drop_path=rate))
        with torch.no_grad():
            same = torch.equal(objective.teacher(views).features, objective.teacher(views).features)
        assert same is (rate == 0.0)
        exported = objective.export_backbone()
        assert torch.equal(exported(views[0]), exported(views[0])) and exported.config.drop_path == 0.0


def test_state_goes_round_with_the_queue():
    objective, other = Moby(VIT, CONFIG, seed=1), Moby(VIT, CONFIG, seed=2)
    objective.update({}, {"keys": keys_of(7, 0)})
    saved = copy.deepcopy(objective.state_tensors())
    assert {"queue", "position"} <= saved.keys() and not any("predictor" in name for name in saved)
    other.load_state_tensors(saved)
    other.student.load_state_dict(objective.student.state_dict())
    assert int(other.position) == 7
    losses = [each(each.student, crops(), PROGRESS).loss for each in (objective, other)]
    assert torch.equal(*losses)


def test_the_momentum_encoder_follows_without_the_predictor():
    objective = Moby(VIT, CONFIG)
    before = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
    objective.update_teacher(objective.student.named_parameters(), 0.9)
    for name, value in objective.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1, atol=1e-5, rtol=0)


def test_training_finds_the_own_key():
    objective = Moby(VIT, dataclasses.replace(CONFIG, queue_size=24))  # three previous batches, not the current one
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        views = crops(1, images=8, seed=step % 4) * 2
        output = objective(objective.student, views, PROGRESS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update(output.statistics, output.rows)
        objective.update_teacher(objective.student.named_parameters(), 0.9)
        losses.append(output.loss.item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[4:8])


def test_wrong_inputs_and_settings_are_named():
    objective = Moby(VIT, CONFIG)
    with pytest.raises(ValueError, match="2 global crops of at least 2 images: got 1 crops of 4"):
        objective(objective.student, crops(1), PROGRESS)
    for field, value in (("queue_size", 0), ("temperature", 0.0), ("teacher_momentum", 1.1), ("teacher_drop_path", 1.0)):
        with pytest.raises(ValueError, match=f"^{field} must be"):
            dataclasses.replace(CONFIG, **{field: value})


def test_the_config_chooses_it():
    chosen = ObjectiveConfig(name="moby", moby=CONFIG)
    assert isinstance(build_objective(VIT, chosen), Moby) and chosen.teacher_momentum == 0.99
