"""The moving average of the weights, against the recursion."""

import torch
from torch import nn

from platform.engine.finetune.weight_average import WeightAverage


def test_it_follows_the_recursion_and_leaves_the_weights_alone():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, expected = WeightAverage(model, 0.9), model.weight.detach().clone()
    bias = model.bias.clone()
    for step in range(5):
        with torch.no_grad():
            model.weight += step + 1
        average.update()
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    own = model.weight.detach().clone()
    with average.applied():
        assert torch.allclose(model.weight, expected, atol=1e-5) and torch.equal(model.bias, bias)
    assert torch.equal(model.weight, own) and list(average.state()) == ["weight"]
    again = WeightAverage(nn.Linear(3, 2), 0.9)
    again.average.pop("bias")
    again.load(average.state())
    assert torch.equal(again.average["weight"], average.average["weight"])
    average.write()
    assert torch.allclose(model.weight, expected, atol=1e-5)
