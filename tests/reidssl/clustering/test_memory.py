"""The cluster memory against the released code and a plain loop."""

import pytest
import torch

from reidssl.clustering.memory import ClusterMemory
from tests.reference.fill_weights import arrays


def plain_update(centroids, features, labels, momentum, hard):
    """The definition, one feature at a time."""
    centroids, features = centroids.clone(), features / features.norm(dim=1, keepdim=True)
    if hard:
        chosen = {}
        for index, label in enumerate(labels.tolist()):
            similarity = (features[index] @ centroids[label]).item()
            if label not in chosen or similarity < chosen[label][0]:
                chosen[label] = (similarity, index)
        order = [index for _, index in chosen.values()]
    else:
        order = range(len(labels))
    for index in order:
        moved = momentum * centroids[labels[index]] + (1 - momentum) * features[index]
        centroids[labels[index]] = moved / moved.norm()
    return centroids


@pytest.mark.parametrize(("name", "hard"), [("cm", False), ("hard", True)])
def test_two_steps_equal_released(name, hard):
    """The reference's second step has the batch in reverse order, which matters in the plain update only."""
    reference = arrays("cluster_memory.npz")
    memory = ClusterMemory(reference["memory0"], temperature=0.05, momentum=0.1, hard=hard)
    features, labels = reference["inputs"].requires_grad_(), reference["targets"]
    loss = memory(features, labels)
    loss.backward()
    memory.update(features, labels)
    torch.testing.assert_close(loss.double(), reference[f"{name}_m0.1_loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.grad, reference[f"{name}_m0.1_grad"], atol=1e-6, rtol=0)
    torch.testing.assert_close(memory.centroids, reference[f"{name}_m0.1_memory1"], atol=1e-6, rtol=0)
    second = memory(features.flip(0), labels.flip(0))
    memory.update(features.flip(0), labels.flip(0))
    torch.testing.assert_close(second.double(), reference[f"{name}_m0.1_loss2"], atol=1e-5, rtol=0)
    torch.testing.assert_close(memory.centroids, reference[f"{name}_m0.1_memory2"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.2), (17, 0.0), (64, 0.9)])
def test_update_equals_a_loop(hard, batch, momentum):
    generator = torch.Generator().manual_seed(batch)
    memory = ClusterMemory(torch.randn(9, 5, generator=generator), momentum=momentum, hard=hard)
    features = torch.randn(batch, 5, generator=generator)
    labels = torch.randint(9, (batch,), generator=generator)
    expected = plain_update(memory.centroids, features, labels, momentum, hard)
    untouched = [label for label in range(9) if label not in labels.tolist()]
    before = memory.centroids.clone()
    memory.update(features, labels)
    torch.testing.assert_close(memory.centroids, expected)
    assert torch.equal(memory.centroids[untouched], before[untouched])


def test_first_of_equally_hard_features_is_taken():
    memory = ClusterMemory(torch.tensor([[1.0, 0.0]]), momentum=0.0, hard=True)
    memory.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(memory.centroids, torch.tensor([[0.0, 1.0]]))


def test_loss_is_pure_and_accumulates():
    """Backward does not change the memory, so two half batches and one update equal one batch and one update."""
    generator = torch.Generator().manual_seed(0)
    start, features = torch.randn(4, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.arange(12) % 4
    memory = ClusterMemory(start)
    before = memory.centroids.clone()
    whole = features.clone().requires_grad_()
    memory(whole, labels).backward()
    halves = features.clone().requires_grad_()
    for part in (slice(0, 6), slice(6, 12)):
        (memory(halves[part], labels[part]) / 2).backward()
    assert torch.equal(memory.centroids, before)
    torch.testing.assert_close(halves.grad, whole.grad)


def test_loss_takes_any_feature_scale_and_half_precision():
    memory = ClusterMemory(torch.eye(3))
    features, labels = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([1])
    cosines = torch.tensor([1 / 3, 2 / 3, 2 / 3])
    expected = -(cosines / 0.05).log_softmax(0)[1]
    torch.testing.assert_close(memory(features, labels), expected)
    torch.testing.assert_close(memory(100 * features.bfloat16(), labels), expected)


@pytest.mark.parametrize("labels", [[-1, 0], [0, 3]])
def test_outliers_are_refused(labels):
    memory = ClusterMemory(torch.eye(3))
    for call in (memory, memory.update):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
            call(torch.randn(2, 3), torch.tensor(labels))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"momentum": 1.5}, {"centroids": torch.zeros(0, 3)}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClusterMemory(**{"centroids": torch.eye(3), **wrong})


def test_a_feature_is_drawn_to_every_camera_of_its_cluster():
    generator = torch.Generator().manual_seed(3)
    centroids, features = torch.randn(5, 6, generator=generator), torch.randn(4, 6, generator=generator)
    groups, labels = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 4, 2, 0])
    memory = ClusterMemory(centroids, temperature=0.1, groups=groups)
    logs = torch.log_softmax(torch.nn.functional.normalize(features, dim=1) @ memory.centroids.T / 0.1, dim=1)
    expected = -torch.stack([logs[row, groups == groups[label]].mean() for row, label in enumerate(labels)]).mean()
    torch.testing.assert_close(memory(features, labels), expected)
    alone = ClusterMemory(centroids, temperature=0.1, groups=torch.arange(5))
    torch.testing.assert_close(alone(features, labels), ClusterMemory(centroids, temperature=0.1)(features, labels))
    with pytest.raises(ValueError, match=r"groups must have one number per vector, 5: got \(2,\)"):
        ClusterMemory(centroids, groups=groups[:2])


def test_autocast_changes_nothing():
    """At a temperature of 0.02 the rounding of bf16 cosines would become steps of 0.2 in the softmax."""
    generator = torch.Generator().manual_seed(5)
    memory = ClusterMemory(torch.randn(30, 16, generator=generator), temperature=0.02)
    features, labels = torch.randn(8, 16, generator=generator), torch.arange(8)
    plain = memory(features, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(memory(features, labels), plain)
        memory.update(features.bfloat16(), labels)
    assert memory.centroids.dtype == torch.float32 and torch.isfinite(memory.centroids).all()


@pytest.mark.parametrize(("features", "labels"), [((2, 4), 2), ((2, 3), 1), ((3,), 1), ((2, 1), 2)])
def test_shapes_that_do_not_fit_are_refused(features, labels):
    """A width of 1 would be broadcast silently."""
    memory = ClusterMemory(torch.eye(3))
    for call in (memory, memory.update):
        with pytest.raises(ValueError, match=r"features \(B, 3\) and labels \(B,\): got"):
            call(torch.ones(features), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_do_not_reach_the_memory(value):
    memory, features = ClusterMemory(torch.eye(3)), torch.ones(3, 3)
    features[1, 2] = value
    with pytest.raises(ValueError, match="1 of 3 have NaN or infinite values, the first in row 1"):
        memory.update(features, torch.arange(3))
    assert torch.equal(memory.centroids, torch.eye(3))


def test_soft_labels_are_the_teachers_softmax():
    """The value is the definition's, the gradient flows to the student alone, and no loss is below the teacher's entropy."""
    generator = torch.Generator().manual_seed(0)
    memory = ClusterMemory(torch.randn(7, 5, generator=generator), temperature=0.2)
    features, teacher = (torch.randn(6, 5, generator=generator).requires_grad_() for _ in range(2))
    loss = memory.soft_loss(features, teacher)
    loss.backward()
    scores, targets = (
        each.detach() / each.detach().norm(dim=1, keepdim=True) @ memory.centroids.T / 0.2 for each in (features, teacher)
    )
    targets = targets.exp() / targets.exp().sum(1, keepdim=True)
    logs = (scores.exp() / scores.exp().sum(1, keepdim=True)).log()
    torch.testing.assert_close(loss.detach(), -(targets * logs).sum(1).mean())
    assert features.grad.abs().max() > 0 and teacher.grad is None
    entropy = -(targets * targets.log()).sum(1).mean()
    torch.testing.assert_close(memory.soft_loss(3 * teacher, teacher).detach(), entropy)  # length does not count
    assert loss > entropy
    with pytest.raises(ValueError, match=r"teacher must have the shape of features, \(6, 5\): got \(5, 5\)"):
        memory.soft_loss(features, teacher[1:])
