"""ICS, the IBN-based convolution stem that replaces the patch projection (TransReID-SSL, section 3.4).

    conv 7x7 /2 - IBN - ReLU - conv 3x3 - IBN - ReLU - conv 3x3 - BN - ReLU - conv (patch/2) /(stride/2)

Shapes: B images, C stem channels, D embedding width, (h, w) the grid of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InstanceBatchNorm(nn.Module):
    """IBN: instance norm on the first half of the channels, batch norm on the second (IBN-Net, arXiv
    1807.09441).

    Instance norm removes an image's own appearance statistics (lighting, camera colour); batch norm keeps
    content. Input and output: float (B, C, H, W), C even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"stem_width must be even so that IBN can split it in halves: got {channels}")
        self.instance_channels = channels // 2
        self.instance = nn.InstanceNorm2d(self.instance_channels, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.instance_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat(
            (self.instance(maps[:, : self.instance_channels]), self.batch(maps[:, self.instance_channels :])),
            dim=1,
        )


class IcsStem(nn.Module):
    """Images to patch embeddings: float (B, 3, H, W) -> (B, D, h, w).

    The first convolution halves the image, so the last one has kernel patch_size / 2 and stride stride / 2:
    both must be even. Batch norm statistics are those of the batch that is passed in.
    """

    def __init__(self, width: int, patch_size: int, stride: int, stem_width: int = 64) -> None:
        super().__init__()
        if patch_size % 2 or stride % 2:
            raise ValueError(
                "the ics stem halves the image first, so patch_size and stride must be even: "
                f"got {patch_size} and {stride}; use stem=patch for odd sizes"
            )
        self.conv1 = nn.Conv2d(3, stem_width, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm1 = InstanceBatchNorm(stem_width)
        self.conv2 = nn.Conv2d(stem_width, stem_width, kernel_size=3, padding=1, bias=False)
        self.norm2 = InstanceBatchNorm(stem_width)
        self.conv3 = nn.Conv2d(stem_width, stem_width, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(stem_width)
        self.proj = nn.Conv2d(stem_width, width, kernel_size=patch_size // 2, stride=stride // 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm1(self.conv1(images)).relu()
        maps = self.norm2(self.conv2(maps)).relu()
        maps = self.norm3(self.conv3(maps)).relu()
        return self.proj(maps)
