"""Drop path of the pieces of a step."""

import pytest
import torch
from timm.layers import DropPath

from reidssl.models.drop_path import StepDropPath, draw_by_step
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit


def drawn(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return layer(x)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_whole_step_draws_what_timm_draws_and_a_piece_its_rows(rate):
    x = torch.randn(24, 5, 2)
    whole = drawn(DropPath(rate), x)
    layer = StepDropPath(rate)
    assert torch.equal(drawn(layer, x), whole) and not torch.equal(whole, x)
    for first, end in ((0, 10), (10, 24), (7, 8)):
        layer.place = first, 24
        assert torch.equal(drawn(layer, x[first:end]), whole[first:end])
    assert torch.equal(layer.eval()(x), x) and torch.equal(StepDropPath(0.0)(x), x)


def test_every_drop_path_of_a_model_is_replaced():
    model = build_vit(VitConfig(width=16, depth=3, heads=2, patch_size=16, image_size=(64, 32), drop_path=0.2))
    before = model.state_dict().keys()
    layers = draw_by_step(model)
    assert [round(layer.rate, 6) for layer in layers] == [0.1, 0.1, 0.2, 0.2]  # the first block drops nothing
    assert not any(isinstance(layer, DropPath) for layer in model.modules()) and model.state_dict().keys() == before
    assert draw_by_step(model) == []
