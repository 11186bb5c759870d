"""DINO's head against the released code, and the freezing of its last layer."""

import torch

from reidssl.models.heads import DinoHead
from tests.reference.fill_weights import arrays, fill


def test_equals_released():
    reference = arrays("dino.npz")
    head = DinoHead(384, 1024)
    head.load_state_dict({name: fill(name, tuple(value.shape)) for name, value in head.state_dict().items()})
    torch.testing.assert_close(head(reference["head_in"]), reference["head_out_g1"], atol=1e-5, rtol=0)


def test_only_the_direction_of_a_prototype_matters():
    head = DinoHead(8, 16, hidden=12, bottleneck=4)
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    before = head(features)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7.0)
    torch.testing.assert_close(head(features), before)
    assert before.abs().max() <= 1 + 1e-6


def test_freezing_gives_the_same_output_and_exactly_zero_gradient():
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for freeze in (False, True):
        head = DinoHead(8, 16, hidden=12, bottleneck=4, seed=1)
        output = head(features, freeze_last_layer=freeze)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append({name: parameter.grad for name, parameter in head.named_parameters()})
    assert torch.equal(*outputs)
    free, frozen = gradients
    assert free["last_layer.weight_v"].abs().sum() > 0
    assert frozen["last_layer.weight_v"] is not None and not frozen["last_layer.weight_v"].any()
    for name in free.keys() - {"last_layer.weight_v"}:
        torch.testing.assert_close(frozen[name], free[name])
