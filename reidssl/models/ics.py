"""ICS, the IBN-based convolution stem that replaces the patch projection (TransReID-SSL, section 3.4).

    conv 7x7 /2 - IBN - ReLU - conv 3x3 - IBN - ReLU - conv 3x3 - BN - ReLU - conv (patch/2) /(stride/2)

Shapes: B images, C stem channels, D embedding width, (h, w) the grid of patches.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.precision import widened


class InstanceBatchNorm(nn.Module):
    """IBN: instance norm on the first half of the channels, batch norm on the second (IBN-Net, arXiv 1807.09441).

    Instance norm removes the appearance statistics of each image (lighting, camera color); batch norm keeps content. Input and
    output: float (B, C, H, W), C even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"stem_width must be even so that IBN can split it in halves: got {channels}")
        self.instance_channels = channels // 2
        self.instance = nn.InstanceNorm2d(self.instance_channels, affine=True)
        self.batch = _BatchHalf(channels - self.instance_channels)

    def forward(self, maps: Tensor) -> Tensor:
        # Exported graphs keep the published layers. torch.compiler.is_exporting() is true in all traced code up to PyTorch 2.11.
        if torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag:
            return self.in_one_pass(maps)
        return torch.cat(
            (self.instance(maps[:, : self.instance_channels]), self.batch(maps[:, self.instance_channels :])),
            dim=1,
        )

    def in_one_pass(self, maps: Tensor) -> Tensor:
        """The same result as `forward`, up to rounding, without splitting the maps.

        One reduction gives the statistics of each image and channel, from which those of the batch are computed. Then all
        channels are scaled and shifted at once. The compiler turns this into a few kernels for any memory format of the maps.
        """
        half = self.instance_channels
        variances, means = torch.var_mean(widened(maps), dim=(2, 3), correction=0)  # (B, C)
        of_batch, spread_of_batch = self.batch(means[:, half:], variances[:, half:], maps.shape[2] * maps.shape[3])
        center = torch.cat((means[:, :half], of_batch.expand(maps.shape[0], -1)), dim=1)
        spread = torch.cat((variances[:, :half], spread_of_batch.expand(maps.shape[0], -1)), dim=1)
        gain, offset = (torch.cat((getattr(self.instance, name), getattr(self.batch, name))) for name in ("weight", "bias"))
        scale = gain * torch.rsqrt(spread + self.batch.eps)
        shift = offset - center * scale
        return (maps * scale[:, :, None, None] + shift[:, :, None, None]).to(maps.dtype)


class _BatchHalf(nn.BatchNorm2d):
    """A BatchNorm2d that can also be given statistics of images instead of maps; it then returns those to normalize with.

    This is a module and not a function, so that forward hooks on batch norms also see these calls.
    """

    def forward(self, maps: Tensor, variances: Tensor | None = None, pixels: int = 0) -> Any:
        """Batch norm of maps, or the statistics to normalize with.

        Without `variances`: maps (B, C, H, W) are normalized as by BatchNorm2d. With `variances`: `maps` are means (B, C) and
        `variances` are uncorrected variances (B, C) of images with `pixels` pixels each. Returned are a mean and a variance, each
        (C,): in training those of the batch, which also update the running statistics, otherwise the running ones.
        """
        if variances is None:
            return super().forward(maps)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        if not self.training:
            return self.running_mean, self.running_var
        mean = maps.mean(dim=0)
        variance = variances.mean(dim=0) + (maps - mean).square().mean(dim=0)
        with torch.no_grad():
            count = maps.shape[0] * pixels
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(variance.to(self.running_var) * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return mean, variance


def patch_products(projection: nn.Conv2d, maps: Tensor) -> Tensor:
    """`projection(maps)`, as one matrix product where the convolution is slow or wrong: (B, C, H, W) -> (B, D, h, w).

    On a GPU, if the patches do not overlap: cuDNN's backward pass for convolutions with such large strides is slow. On an H100,
    that of the ICS stem took 14.9 of the 180 ms of a step of ViT-S (`benchmarks.gpu_profile`).

    On a CPU, in bf16: on processors with AMX, oneDNN's convolution (torch 2.14.1) has wrong values, without an error, for many
    shapes with a number of channels that is no multiple of 32, as in a narrow ICS stem. Issue 169688 of pytorch/pytorch reports
    such a case.
    """
    slow = maps.is_cuda and projection.stride == projection.kernel_size
    wrong = maps.device.type == "cpu" and (maps.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))
    result: Tensor = _as_product(projection, maps) if slow or wrong else projection(maps)
    return result


def _as_product(projection: nn.Conv2d, maps: Tensor) -> Tensor:
    patches = _patches(maps, int(projection.kernel_size[0]), int(projection.stride[0]))
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches, weight, projection.bias).permute(0, 3, 1, 2)


def _patches(maps: Tensor, size: int, stride: int) -> Tensor:
    """(B, C, H, W) -> (B, h, w, size * size * C), the channels of a pixel side by side."""
    if stride != size:
        return maps.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 4, 5, 1).flatten(3)
    images, channels, height, width = maps.shape
    rows, columns = height // size, width // size
    pixels = maps[:, :, : rows * size, : columns * size].permute(0, 2, 3, 1)
    return pixels.reshape(images, rows, size, columns, size, channels).transpose(2, 3).flatten(3)


class IcsStem(nn.Module):
    """Images to patch embeddings: float (B, 3, H, W) -> (B, D, h, w).

    The first convolution halves the image, so the last one has kernel patch_size / 2 and stride stride / 2. Both patch_size and
    stride must therefore be even, else ValueError. Batch norm statistics are those of the batch that is passed in.
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
        if images.is_cuda:  # convolutions on tensor cores need this memory format; later layers keep it
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.norm1(self.conv1(images)).relu()
        maps = self.norm2(self.conv2(maps)).relu()
        maps = self.norm3(self.conv3(maps)).relu()
        return patch_products(self.proj, maps)
