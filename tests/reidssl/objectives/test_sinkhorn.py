"""Sinkhorn-Knopp against plain arithmetic on probabilities, and its properties."""

import numpy as np
import pytest
import torch

from reidssl.objectives.sinkhorn import sinkhorn_knopp


def plain(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """The published procedure on the matrix (prototypes, samples), one row and one column at a time."""
    q = np.exp(logits.astype(np.float64) / temperature).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[k] /= q[k].sum() * prototypes
        for n in range(samples):
            q[:, n] /= q[:, n].sum() * samples
    return (q * samples).T


@pytest.mark.parametrize("shape", [(6, 4), (4, 30), (1, 5), (7, 1)])
@pytest.mark.parametrize("temperature", [0.04, 0.5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_plain_arithmetic(shape, temperature, iterations):
    logits = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = sinkhorn_knopp(logits, temperature, iterations)
    np.testing.assert_allclose(found.numpy(), plain(logits.numpy(), temperature, iterations), atol=2e-6, rtol=2e-5)
    assert found.dtype == torch.float32


def test_rows_are_probabilities_and_prototypes_are_used_equally():
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(2)) * 0.1
    logits[:, 3] += 0.6  # all images prefer one prototype
    assert (logits.argmax(1) == 3).all()
    found = sinkhorn_knopp(logits, 0.1, iterations=50)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 64 / 8), atol=1e-3, rtol=0)
    assert len(found.argmax(1).unique()) == 8


def test_order_of_rows_and_common_shifts_do_not_matter():
    logits = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4))
    found = sinkhorn_knopp(logits, 0.1)
    torch.testing.assert_close(sinkhorn_knopp(logits[order], 0.1), found[order])
    torch.testing.assert_close(sinkhorn_knopp(logits + 7.0, 0.1), found, atol=1e-5, rtol=1e-3)


def test_a_very_sharp_teacher_does_not_overflow():
    found = sinkhorn_knopp(torch.tensor([[1.0, -1.0], [0.9, -0.2]], dtype=torch.bfloat16), 0.005)
    assert found.isfinite().all() and found.sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0, 4), 0.1), r"logits must be .* got shape \(0, 4\)"),
        ((torch.zeros(2, 3, 4), 0.1), r"logits must be .* got shape \(2, 3, 4\)"),
        ((torch.zeros(2, 4), 0.0), "temperature must be positive: got 0.0"),
        ((torch.zeros(2, 4), 0.1, 0), "iterations must be at least 1: got 0"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sinkhorn_knopp(*arguments)
