"""DINO's head against the released code, and the freezing of its last layer."""

import torch
from torch import nn
from torch.nn import functional as F

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


def test_batch_norm_follows_the_hidden_layers():
    """Equal to torch's own layers, in training and in evaluation; the linear layers begin as without it."""
    head, plain = (DinoHead(8, 16, hidden=12, bottleneck=4, batch_norm=batch_norm) for batch_norm in (True, False))
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    for ours, theirs in zip(linear, plain.mlp[::2], strict=True):
        assert torch.equal(ours.weight, theirs.weight)
    features = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    norms = [nn.BatchNorm1d(12) for _ in range(2)]
    for mode in (True, False):
        hidden = features
        for layer, norm in zip(linear, norms, strict=False):
            hidden = F.gelu(norm.train(mode)(layer(hidden)))
        expected = F.linear(F.normalize(linear[2](hidden), dim=-1), F.normalize(head.last_layer.weight_v, dim=-1))
        torch.testing.assert_close(head.train(mode)(features), expected)
