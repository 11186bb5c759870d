"""Multi-crop augmentation of pre-training (DINO, arXiv 2104.14294; TransReID-SSL, arXiv 2111.12084).

Every image gives two large ("global") and several small ("local") crops. Each crop has its own flip, color jitter, grayscale and
blur; the second global crop also has solarization. Batches of uint8 images are processed on their device, by `batched.py` on
accelerators and by the loops of `kernels.py` on a CPU. The result for an image depends on its seed alone, not on its batch.

    crops = MultiCrop(MultiCropConfig())(images, sample_seeds(seed, epoch, keys))

Legend: B images, V crops of one size, H x W source size, h x w crop size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidssl.augment import batched, color, geometry
from reidssl.augment import kernels as compiled
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.augment.image_checks import check_images, check_shapes
from reidssl.seeding import uniforms


@dataclass(frozen=True)
class Draws:
    """Random parameters of N crops of one size."""

    boxes: NDArray[np.int64]  # (N, 4) top, left, height, width in the source image
    flipped: NDArray[np.bool_]  # (N,)
    jittered: NDArray[np.bool_]  # (N,)
    orders: NDArray[np.int64]  # (N,) index into color.JITTER_ORDERS
    factors: NDArray[np.float64]  # (N, 4) factors of color.JITTER_OPERATORS
    gray: NDArray[np.bool_]  # (N,)
    sigmas: NDArray[np.float64]  # (N,) standard deviation of the blur in pixels, 0: no blur
    solarized: NDArray[np.bool_]  # (N,)


class MultiCrop:
    """Makes the crops of a batch at random. Its only state is the configuration.

    use_compiled: False is for comparison only. A CPU then uses the code for accelerators, and an accelerator runs it without
    compilation. The crops are the same up to rounding, but slower to compute.
    """

    def __init__(self, config: MultiCropConfig, use_compiled: bool = True) -> None:
        self.config = config
        self.use_compiled = use_compiled

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: NDArray[np.uint64], shapes: NDArray[np.integer[Any]] | None = None) -> list[Tensor]:
        """The crops [global 1, global 2, local 1, ...] of `images`, normalized: float32 (B, 3, h, w) each.

        Args:
            images: uint8 (B, 3, H, W), RGB, of any size, on any device.
            seeds: uint64 (B,) from `sample_seeds`.
            shapes: integers (B, 2), height and width of the images before they were scaled to H x W. The crops show the same
                parts as if they had been cut from the unscaled images. None: they were not scaled.

        Raises ValueError for other types or shapes.
        """
        check_images(images, seeds)
        check_shapes(images, shapes)
        config = self.config
        sizes = [(config.global_size, [0, 1])]
        if config.num_local:
            sizes.append((config.local_size, list(range(2, 2 + config.num_local))))
        height, width = images.shape[2:]
        stretches = 1.0 if shapes is None else shapes[:, 0] / shapes[:, 1] * (width / height)
        groups = [(size, len(views), self._draw(seeds, height, width, views, stretches)) for size, views in sizes]
        on_cpu = images.device.type == "cpu"
        if on_cpu and self.use_compiled:
            made = [_room((num_views, len(images), 3, *size)) for size, num_views, _ in groups]
            for (_, _, draws), out in zip(groups, made, strict=True):
                compiled.make_crops(images, draws, out, config.mean, config.std)
        else:
            blurs = max(config.blur_global1, config.blur_global2, config.blur_local) > 0
            made = batched.make_crops(
                images, groups, config.blur_sigma[1] if blurs else 0.0, config.mean, config.std, self.use_compiled
            )
        # All crops of one size share one block of memory, of which each crop is a contiguous slice.
        crops = [crop for block in made for crop in block.unbind(0)]
        return crops

    def _draw(
        self,
        seeds: NDArray[np.uint64],
        height: int,
        width: int,
        views: Sequence[int],
        stretches: NDArray[np.float64] | float = 1.0,
    ) -> Draws:
        """Random parameters of V * B crops, view after view. Each view has its own stream of random numbers."""
        config, stretches = self.config, np.tile(np.broadcast_to(stretches, len(seeds)), len(views))
        draws = np.concatenate([uniforms(seeds, geometry.CROP_UNIFORMS + 11, stream=view) for view in views])
        (flip, jitter, order, brightness, contrast, saturation, hue, gray, blur, sigma, solarize) = draws[
            :, geometry.CROP_UNIFORMS :
        ].T
        view = np.repeat(views, len(seeds))
        blur_probability = np.where(view == 0, config.blur_global1, np.where(view == 1, config.blur_global2, config.blur_local))
        sigmas = config.blur_sigma[0] + (config.blur_sigma[1] - config.blur_sigma[0]) * sigma
        factors = np.stack(
            [
                1 + config.brightness * (2 * brightness - 1),
                1 + config.contrast * (2 * contrast - 1),
                1 + config.saturation * (2 * saturation - 1),
                config.hue * (2 * hue - 1),
            ],
            axis=1,
        )
        scale = config.global_scale if views[0] < 2 else config.local_scale
        return Draws(
            boxes=geometry.random_crop_boxes(draws[:, : geometry.CROP_UNIFORMS], height, width, scale, config.aspect, stretches),
            flipped=flip < config.flip,
            jittered=jitter < config.jitter,
            orders=(order * len(color.JITTER_ORDERS)).astype(np.int64),
            factors=factors,
            gray=gray < config.grayscale,
            sigmas=np.where(blur < blur_probability, sigmas, 0.0),
            solarized=(solarize < config.solarize) & (view == 1),
        )


def _room(shape: tuple[int, ...]) -> Tensor:
    """An uninitialized float32 tensor on the CPU.

    It is allocated by NumPy, which requests huge pages from the system. New memory then costs a fifth of the time.
    """
    return torch.from_numpy(np.empty(shape, dtype=np.float32))
