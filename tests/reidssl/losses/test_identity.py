"""Identity loss against its definition."""

import pytest
import torch

from reidssl.losses.identity import identity_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_definition(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator), torch.tensor([0, 4, 2, 2, 1, 3])
    targets = torch.full((6, 5), smoothing / 5)
    targets[torch.arange(6), labels] += 1 - smoothing
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -(targets * probabilities.log()).sum(dim=1).mean()
    torch.testing.assert_close(identity_loss(logits, labels, smoothing), expected)


def test_smoothing_of_one_is_refused():
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        identity_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 1.0)


def test_half_logits_are_summed_in_single_precision():
    logits, labels = (8 * torch.randn(64, 500, generator=torch.Generator().manual_seed(0))).bfloat16(), torch.arange(64)
    expected = identity_loss(logits.double(), labels)
    assert expected.dtype == torch.float64 and identity_loss(logits, labels).dtype == torch.float32
    torch.testing.assert_close(identity_loss(logits, labels).double(), expected, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(identity_loss(logits, labels).double(), expected, rtol=1e-5, atol=0)
