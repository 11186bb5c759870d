"""Batch-hard triplet loss against the released code and a loop over all triplets."""

import math

import pytest
import torch

from reidssl.losses.identity import identity_loss
from reidssl.losses.triplet import batch_hard, triplet_loss
from tests.reference.fill_weights import arrays


def test_soft_margin_equals_released():
    reference = arrays("supervised.npz")
    features, labels = reference["feat"].requires_grad_(), reference["labels"]
    loss = triplet_loss(features, labels)
    loss.backward()
    positive, negative = batch_hard(features, labels)
    torch.testing.assert_close(loss.double(), reference["soft_loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(features.grad, reference["soft_grad"], atol=1e-6, rtol=0)
    torch.testing.assert_close(positive, reference["soft_dist_ap"], atol=1e-5, rtol=0)
    torch.testing.assert_close(negative, reference["soft_dist_an"], atol=1e-5, rtol=0)


def test_recipe_equals_released():
    """Identity cross-entropy plus triplet loss, equally weighted."""
    reference = arrays("supervised.npz")
    scores, labels = reference["score"].requires_grad_(), reference["labels"]
    loss = identity_loss(scores, labels) + triplet_loss(reference["feat"], labels)
    loss.backward()
    torch.testing.assert_close(loss.double(), reference["make_loss_ls_off"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.grad, reference["make_loss_ls_off_score_grad"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("margin", [None, 0.3, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop(margin, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])[torch.randperm(10, generator=generator)]
    total = 0.0
    for i in range(10):
        distances = [math.dist(features[i].tolist(), features[j].tolist()) for j in range(10)]
        positive = max(d for j, d in enumerate(distances) if labels[j] == labels[i])
        negative = min(d for j, d in enumerate(distances) if labels[j] != labels[i])
        difference = positive - negative
        total += math.log1p(math.exp(difference)) if margin is None else max(0.0, difference + margin)
    assert triplet_loss(features, labels, margin).item() == pytest.approx(total / 10, rel=1e-9)


def test_equal_features_have_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad.isfinite().all()


def test_one_identity_is_refused():
    with pytest.raises(ValueError, match="batch of 3 has only one"):
        triplet_loss(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("margin", [None, 0.3])
def test_half_types_and_autocast_lose_nothing_but_the_rounding_of_the_input(margin):
    """For large features that lie close together, the difference of their squares in bf16 would have noise of about 8."""
    generator = torch.Generator().manual_seed(0)
    features = (30 + torch.randn(12, 64, generator=generator)).bfloat16()
    labels = torch.arange(12) // 3
    expected = triplet_loss(features.double(), labels, margin)
    assert expected.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        inside = triplet_loss(features.float(), labels, margin)
    for found in (triplet_loss(features, labels, margin), inside, triplet_loss(features.float(), labels, margin)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("features", "labels"), [((4, 2), 3), ((0, 2), 0), ((4,), 4)])
def test_shapes_that_do_not_fit_are_refused(features, labels):
    with pytest.raises(ValueError, match=rf"features \(B, D\) and labels \(B,\).*got \({features[0]}.* and \({labels},\)"):
        triplet_loss(torch.zeros(features), torch.arange(labels))


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_a_negative_margin_is_refused(margin):
    with pytest.raises(ValueError, match=f"margin must be 0 or more, or None for the soft one: got {margin}"):
        triplet_loss(torch.zeros(2, 2), torch.arange(2), margin)
