"""Forward passes of a model for extraction: the precision of training, compiled where that pays."""

from collections.abc import Callable

import torch
from torch import Tensor

from platform.engine.runtime.device import allow_fast_products, device, keep_compiled_code
from platform.engine.runtime.device import precision as resolved
from reidssl.accelerator import wants_compiling
from reidssl.models.vit import Vit

PADDED_TO = 64
"""The rows of a compiled pass are a multiple of it, so that batches that grow a little need no graph of their own."""


class Forward:
    """The forward pass of a model in eval mode, whose features are fp32 whatever the precision of the pass.

    A compiled model has one graph for one batch size. Smaller batches, such as the last one of a shard, are therefore padded
    to the largest batch so far, and that to a multiple of PADDED_TO.

    Args:
        compute: function from images and camera rows to features: a backbone, or the `features` of a re-ID model with local
            parts. Its weights are on the device of this process.
        precision: fp32, bf16 (autocast), or auto: bf16 on GPUs, fp32 on CPUs.
        compiling: auto, on or off, as in `wants_compiling`.
    """

    def __init__(
        self, compute: Vit | Callable[[Tensor, Tensor | None], Tensor], precision: str = "fp32", compiling: str = "off"
    ) -> None:
        self.compute = compute
        self.precision = resolved(precision)
        self.is_compiled = wants_compiling(compiling, device())
        self._rows = 0
        if self.is_compiled:
            keep_compiled_code()
            if isinstance(compute, Vit):
                compute.compile(dynamic=False)
            else:
                self.compute = torch.compile(compute, dynamic=False)

    def __call__(self, images: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Features float32 (B, D), or (B, W) with local parts.

        images: float (B, 3, H, W), normalized; cameras: int64 (B,), rows of the embeddings.
        """
        rows = len(images)
        if self.is_compiled:
            self._rows = max(self._rows, -(-rows // PADDED_TO) * PADDED_TO)
            images = _padded(images, self._rows)
            cameras = None if cameras is None else _padded(cameras, self._rows)
        allow_fast_products(self.precision)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = self.compute(images, cameras)
        return features[:rows].float()


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` with zeros below, (rows, ...)."""
    if len(tensor) == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
