"""Projection heads of the self-supervised objectives."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.models.initialization import seeded


class PrototypeLayer(nn.Module):
    """Weight-normed linear layer with a fixed gain of 1: each output is the dot product with a unit vector.

    Input: float (B, D). Output: (B, K). `weight_v` (K, D) is trained; only the directions of its rows matter.
    """

    def __init__(self, width: int, out_dim: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_dim, width))
        bound = width**-0.5
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self, features: Tensor, freeze: bool = False) -> Tensor:
        weight: Tensor = self.weight_v
        if freeze:
            # The gradient is exactly zero, but the parameter stays in the graph, because sharded optimizers wait for the
            # gradient of every parameter.
            weight = weight.detach() + 0.0 * (weight - weight.detach())
        return F.linear(features, F.normalize(weight, dim=-1))


class DinoHead(nn.Module):
    """DINO's projection head: 3-layer GELU MLP, L2 norm, weight-normed last layer (arXiv 2104.14294, appendix C).

    Input: float (B, width). Output: logits (B, out_dim) in [-1, 1].

    batch_norm: normalize the hidden layers by the batch, an option of the released code.
    """

    def __init__(
        self, width: int, out_dim: int, hidden: int = 2048, bottleneck: int = 256, seed: int = 0, batch_norm: bool = False
    ) -> None:
        super().__init__()
        with seeded(seed):
            layers: list[nn.Module] = []
            for before in (width, hidden):
                layers += [nn.Linear(before, hidden), *([nn.BatchNorm1d(hidden)] if batch_norm else []), nn.GELU()]
            self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
            self.last_layer = PrototypeLayer(bottleneck, out_dim)

    def forward(self, features: Tensor, freeze_last_layer: bool = False) -> Tensor:
        logits: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=-1), freeze=freeze_last_layer)
        return logits
