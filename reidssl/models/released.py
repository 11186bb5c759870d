"""The method's released checkpoints: names of parameters, to ours and back, and what their shapes tell.

Our flat names are those of `Vit` (which are timm's outside the ICS stem) plus `bottleneck.*` and
`classifier.*`. Layouts that we write:
    dino              the backbone alone, as pre-training exports it
    reid              supervised model: `base.` before the backbone's names, neck and classifier beside it
    cluster_contrast  unsupervised model: backbone and neck side by side
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.models.vit import VitConfig

LAYOUTS = ("dino", "reid", "cluster_contrast")

# ours -> released, inside `patch_embed.`
_STEM = {
    "conv1": "conv.0",
    "norm1.instance": "conv.1.IN",
    "norm1.batch": "conv.1.BN",
    "conv2": "conv.3",
    "norm2.instance": "conv.4.IN",
    "norm2.batch": "conv.4.BN",
    "conv3": "conv.6",
    "norm3": "conv.7",
}
_TO_RELEASED = {f"patch_embed.{ours}.": f"patch_embed.{theirs}." for ours, theirs in _STEM.items()}
_TO_OURS = {theirs: ours for ours, theirs in _TO_RELEASED.items()}
_CAMERA_OURS, _CAMERA_RELEASED = "camera_embed", "sie_embed"

# Wrappers of data parallelism (module), of DINO's multi-crop model (backbone) and of the supervised model
# (base).
_PREFIXES = ("module.", "backbone.", "base.")
_NECK = ("bottleneck.", "classifier.")


def _replace_prefix(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def to_flat(name: str) -> str:
    """A parameter's name in any known layout (released, timm or ours) -> our flat name."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    name = _replace_prefix(name, _TO_OURS)
    return _CAMERA_OURS if name == _CAMERA_RELEASED else name


def to_released(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A state dict of ours (Vit or ReidModel) with the names of a released layout.

    "dino" leaves neck and classifier out and "cluster_contrast" the classifier, since those layouts have no
    place for them; the other way, "reid" and "cluster_contrast" need a model with a neck. The 1000-class `fc`
    that released ICS files carry was never used and is not written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}: got {layout!r}")
    flat = {to_flat(name): value for name, value in state_dict.items()}
    if layout != "dino" and "bottleneck.weight" not in flat:
        raise ValueError(
            f"layout {layout!r} is that of a re-ID model, and this is a backbone without neck: use layout 'dino'"
        )
    dropped = {"dino": _NECK, "reid": (), "cluster_contrast": ("classifier.",)}[layout]
    released = {}
    for name, value in flat.items():
        if name.startswith(dropped):
            continue
        is_backbone = not name.startswith(_NECK)
        name = _CAMERA_RELEASED if name == _CAMERA_OURS else _replace_prefix(name, _TO_RELEASED)
        released["base." + name if layout == "reid" and is_backbone else name] = value
    return released


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None = None) -> Tensor:
    """Position embeddings (1, 1 + n, D) of a checkpoint -> (1, 1 + rows * columns, D), bilinear, as the
    released code.

    Released files do not store the old grid. Where it is not given it is the first of squares, 2:1, 3:1 and 4:1
    (height:width) that has n cells.
    """
    rows, columns = old_grid or pos_grid(pos_embed.shape[1] - 1)
    cells = pos_embed[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    return torch.cat((pos_embed[:, :1], cells.flatten(2).transpose(1, 2)), dim=1)


def pos_grid(num_patches: int) -> tuple[int, int]:
    """(rows, columns) of a stored grid of patches, for height:width ratios of 1, 2, 3 and 4."""
    for ratio in (1, 2, 3, 4):
        rows = math.isqrt(num_patches * ratio)
        if rows * (rows // ratio) == num_patches:
            return rows, rows // ratio
    raise ValueError(
        f"position embeddings of {num_patches} patches fit no grid of height:width 1, 2, 3 or 4; "
        "build the backbone with the image size that the checkpoint was trained with, which needs no resizing"
    )


def infer_vit_config(tensors: Mapping[str, Tensor], source_name: str) -> VitConfig:
    """The configuration of a checkpoint that does not carry one, from its shapes; heads of 64 channels, no overlap."""
    try:
        width = tensors["cls_token"].shape[-1]
        projection = tensors["patch_embed.proj.weight"]
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        num_patches = tensors["pos_embed"].shape[1] - 1
    except KeyError as error:
        raise ValueError(f"{source_name} is no vision transformer that we know: it has no {error}") from None
    ics = "patch_embed.conv1.weight" in tensors
    patch_size = projection.shape[-1] * (2 if ics else 1)
    rows, columns = pos_grid(num_patches)
    return VitConfig(
        width=width,
        depth=sum(name.endswith(".norm1.weight") and name.startswith("blocks.") for name in tensors),
        heads=max(1, width // 64),
        mlp_ratio=hidden / width,
        patch_size=patch_size,
        image_size=(rows * patch_size, columns * patch_size),
        stem="ics" if ics else "patch",
        stem_width=tensors["patch_embed.conv1.weight"].shape[0] if ics else 64,
        num_cameras=len(tensors["camera_embed"]) if "camera_embed" in tensors else 0,
    )
