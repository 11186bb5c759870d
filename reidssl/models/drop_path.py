"""Drop path (stochastic depth, arXiv 1603.09382) for other uses than timm's layer: batches in pieces, and compiled blocks."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class StepDropPath(nn.Module):
    """timm's drop path, with random numbers drawn for all images of an optimizer step; a piece of the step uses its rows.

    If the generator is seeded with the same value before each piece, the random number of an image depends only on its place in
    the step. For a batch that is not cut, the random numbers are those of timm's layer.
    """

    def __init__(self, rate: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.rate = rate
        self.scale_by_keep = scale_by_keep
        self.place: tuple[int, int] | None = None
        """(first row of the piece, number of images in the step); None: the piece is the whole step."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop residual branches of images at random. x: float (b, ...), the images of the piece in order."""
        if not self.training or self.rate == 0.0:
            return x
        first, total = self.place or (0, len(x))
        keep = 1.0 - self.rate
        kept = x.new_empty((total,) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            kept.div_(keep)
        return x * kept[first : first + len(x)]


def draw_by_step(model: nn.Module) -> list[StepDropPath]:
    """Replace every drop path layer of `model` by StepDropPath. Returns the new layers, so that their `place` can be set."""
    found = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                layer = StepDropPath(child.drop_prob, child.scale_by_keep).train(child.training)
                setattr(parent, name, layer)
                found.append(layer)
    return found


class TensorDropPath(nn.Module):
    """Drop path whose rate is a tensor, so that blocks with different rates share one compiled graph. It also accepts rate 0."""

    keep: Tensor

    def __init__(self, rate: float, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop residual branches of images at random; the others are scaled by 1 / (1 - rate). x: float (B, ...)."""
        if not self.training:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


def one_kind_of_drop_path(vit: nn.Module) -> None:
    """Give all blocks of a timm model that drops paths a TensorDropPath, also the first one, whose rate is 0."""
    if not any(isinstance(layer, DropPath) for layer in vit.modules()):
        return
    device = next(vit.parameters()).device
    for block in vit.get_submodule("blocks").children():
        for name in ("drop_path1", "drop_path2"):
            layer = getattr(block, name)
            if isinstance(layer, DropPath | nn.Identity):
                rate = layer.drop_prob if isinstance(layer, DropPath) else 0.0
                setattr(block, name, TensorDropPath(rate, device).train(layer.training))
