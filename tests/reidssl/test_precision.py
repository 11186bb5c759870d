"""Half types widened, and regions without autocast."""

import pytest
import torch

from reidssl.precision import no_autocast, widened


@pytest.mark.parametrize(("given", "expected"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                                 (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_only_half_types_are_widened(given, expected):
    tensor = torch.ones(2, dtype=given)
    assert widened(tensor).dtype == expected
    assert (widened(tensor) is tensor) == (given == expected)


def test_products_keep_their_type_within_the_region():
    tensor = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (tensor @ tensor).dtype == torch.bfloat16
        with no_autocast(tensor):
            assert (tensor @ tensor).dtype == torch.float32
