"""KoLeo against a loop over images."""

import math

import pytest
import torch

from reidssl.objectives.koleo import koleo_loss


def plain(features: torch.Tensor) -> torch.Tensor:
    """The definition, image by image, in the precision of the features."""
    unit = torch.stack([row / row.norm() for row in features])
    logarithms = []
    for i in range(len(unit)):
        distances = [(unit[i] - unit[j]).norm() for j in range(len(unit)) if j != i]
        logarithms.append(min(distances, key=float).log())
    return -sum(logarithms) / len(logarithms)


@pytest.mark.parametrize("shape", [(2, 3), (9, 4), (12, 32)])
def test_value_and_gradient_equal_the_definition(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]), dtype=torch.float64).requires_grad_()
    expected = plain(features)
    (gradient,) = torch.autograd.grad(expected, features)
    single = features.detach().float().requires_grad_()
    loss = koleo_loss(single)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(single.grad.double(), gradient, atol=1e-5, rtol=1e-4)


def test_ends_of_the_scale():
    assert koleo_loss(torch.tensor([[3.0, 0.0], [-0.1, 0.0]])).item() == pytest.approx(-math.log(2))
    equal = torch.ones(4, 5, requires_grad=True)
    loss = koleo_loss(equal)
    loss.backward()
    assert 15 < loss.item() < 18.5 and equal.grad.isfinite().all()


def test_descent_spreads_the_features():
    features = (torch.ones(6, 3) + 0.05 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.SGD([features], lr=0.05)
    before = torch.pdist(torch.nn.functional.normalize(features.detach(), dim=1)).min()
    for _ in range(100):
        optimizer.zero_grad()
        koleo_loss(features).backward()
        optimizer.step()
    assert torch.pdist(torch.nn.functional.normalize(features.detach(), dim=1)).min() > 10 * before


@pytest.mark.parametrize("shape", [(1, 4), (4,)])
def test_one_image_has_no_neighbor(shape):
    with pytest.raises(ValueError, match="at least 2 images: got shape"):
        koleo_loss(torch.zeros(shape))
