"""ArcFace, CosFace and circle loss against their formulas, one image at a time in double precision."""

import math

import pytest
import torch

from reidssl.losses.identity import identity_loss
from reidssl.losses.margin import MARGIN_LOSSES, arcface_loss, circle_loss

NAMES = list(MARGIN_LOSSES)


def plain(name: str, cosines: list[list[float]], labels: list[int], scale: float, margin: float) -> float:
    """Mean over images of log(1 + sum over other identities of exp(their score - own score))."""
    total = 0.0
    for row, label in zip(cosines, labels, strict=True):
        own = row[label]
        if name == "arcface":
            angle = math.acos(own)
            positive = math.cos(angle + margin) if angle < math.pi - margin else own - margin * math.sin(margin)
        elif name == "cosface":
            positive = own - margin
        else:
            positive = max(1 + margin - own, 0) * (own - (1 - margin))
        scores = [max(c + margin, 0) * (c - margin) if name == "circle" else c for j, c in enumerate(row) if j != label]
        total += math.log(1 + sum(math.exp(scale * (score - positive)) for score in scores))
    return total / len(labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "margin"), [(30.0, 0.3), (8.0, 0.0), (16.0, 0.5)])
def test_equals_the_formula(name, scale, margin):
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(9, 5, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(5, (9,), generator=generator)
    cosines[0, labels[0]] = -0.99  # beyond pi - margin
    found = MARGIN_LOSSES[name](cosines, labels, scale, margin, 0.0)
    assert found.item() == pytest.approx(plain(name, cosines.tolist(), labels.tolist(), scale, margin), rel=1e-7)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_gradient_is_that_of_the_formula(name):
    cosines = (torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    labels = torch.tensor([0, 2, 1, 1])
    MARGIN_LOSSES[name](cosines, labels, 4.0, 0.3, 0.0).backward()
    for i in range(4):
        for j in range(3):
            values = []
            for step in (1e-6, -1e-6):
                moved = cosines.detach().clone()
                moved[i, j] += step
                values.append(plain(name, moved.tolist(), labels.tolist(), 4.0, 0.3))
            assert cosines.grad[i, j].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_circle_gradient_takes_its_weights_as_constants():
    """The gradient by p is -scale * (1 + m - p) * (softmax share of the others), without the derivative of the weight."""
    cosines, labels = torch.tensor([[0.4, 0.1], [-0.5, 0.7]], dtype=torch.float64, requires_grad=True), torch.tensor([0, 1])
    circle_loss(cosines, labels, 6.0, 0.25).backward()
    for row, own, other in ((0, 0, 1), (1, 1, 0)):
        p, n = cosines[row, own].item(), cosines[row, other].item()
        pull, push = max(1.25 - p, 0), max(n + 0.25, 0)
        share = 1 / (1 + math.exp(6 * (pull * (p - 0.75) - push * (n - 0.25))))
        assert cosines.grad[row, own].item() == pytest.approx(-6 * pull * share / 2)
        assert cosines.grad[row, other].item() == pytest.approx(6 * push * share / 2)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_no_margin_is_plain_cross_entropy(name):
    cosines, labels = torch.rand(5, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 3, 0])
    found = MARGIN_LOSSES[name](cosines, labels, 10.0, 0.0, 0.1)
    torch.testing.assert_close(found, identity_loss(10 * cosines, labels, 0.1))


@pytest.mark.parametrize("name", NAMES)
def test_a_larger_margin_is_harder_and_order_does_not_matter(name):
    cosines, labels = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = [float(MARGIN_LOSSES[name](cosines, labels, 10.0, margin, 0.0)) for margin in (0.0, 0.2, 0.4)]
    if name != "circle":  # circle's margin is the tolerated distance, so a smaller margin is harder
        assert losses[0] < losses[1] < losses[2]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert float(MARGIN_LOSSES[name](cosines[order], labels[order], 10.0, 0.2, 0.0)) == pytest.approx(losses[1])


def test_arcface_gradient_is_finite_at_the_ends():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    for labels in ([0, 1], [1, 0]):
        arcface_loss(cosines, torch.tensor(labels), 30.0, 0.5).backward()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize(("name", "margin"), [("arcface", 3.2), ("cosface", 2.0), ("circle", 1.0), ("circle", -0.1)])
def test_impossible_margins_are_refused(name, margin):
    with pytest.raises(ValueError, match=r"margin must be in \[0, .*got"):
        MARGIN_LOSSES[name](torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 30.0, margin, 0.0)


def test_other_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="scale must be positive: got 0"):
        arcface_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0.0, 0.3)
    with pytest.raises(ValueError, match=r"labels \(B,\): got \(2, 3\) and \(3,\)"):
        arcface_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 30.0, 0.3)


@pytest.mark.parametrize("name", NAMES)
def test_half_cosines_are_scaled_in_single_precision(name):
    cosines = (torch.rand(16, 40, generator=torch.Generator().manual_seed(4)) * 2 - 1).bfloat16()
    labels = torch.arange(16)
    expected = MARGIN_LOSSES[name](cosines.double(), labels, 64.0, 0.3, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = MARGIN_LOSSES[name](cosines, labels, 64.0, 0.3, 0.0)
    for found in (inside, MARGIN_LOSSES[name](cosines, labels, 64.0, 0.3, 0.0)):
        assert found.dtype == torch.float32 and expected.dtype == torch.float64
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_labels_without_a_class_are_refused(name):
    for labels, words in (
        ([0, 3], r"labels must be in \[0, 3\): got 0 to 3"),
        ([-1, 2], r"\[0, 3\): got -1 to 2"),
        ([0.0, 1.0], "labels must be integers: got torch.float32"),
    ):
        with pytest.raises(ValueError, match=words):
            MARGIN_LOSSES[name](torch.zeros(2, 3), torch.tensor(labels), 30.0, 0.3, 0.0)
