"""Half types are widened, and regions have no autocast."""

import pytest
import torch

from reidssl.precision import exact_products, no_autocast, widened


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
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


def test_exact_products_bring_back_what_was_allowed():
    """The setting is global to the process. A GPU changes it within the region; it must be restored, after an error too."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with exact_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "high"  # nothing to do on a CPU
        with pytest.raises(ZeroDivisionError), exact_products(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
