"""The method's released checkpoints: conversion of parameter names in both directions, and configuration from tensor shapes.

Our flat names are those of `Vit` (which are timm's outside the ICS stem) plus `bottleneck.*` and
`classifier.*`. Layouts that we write:
    dino              the backbone alone, as pre-training exports it
    dino_teacher      the backbone as in a DINO training checkpoint: under "teacher", with the prefix `backbone.`
                      (`module.backbone.` with the ICS stem, whose training wraps the teacher)
    reid              supervised model: backbone with the prefix `base.`, neck and classifier without prefix
    cluster_contrast  unsupervised model: backbone and neck with the prefix `module.`, under "state_dict"
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig
from reidssl.models.vit import LAYER_SCALE

LAYOUTS = ("dino", "dino_teacher", "reid", "cluster_contrast")

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

# Wrappers of data parallelism (module), torch.compile (_orig_mod), DINO's multi-crop model (backbone) and the
# supervised model (base).
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "base.")
_NECK = ("bottleneck.", "classifier.")
# Parts of published files that are of use in pre-training only: projection heads of DINO, iBOT and DINOv2, classifiers of
# timm, DeiT and the supervised model, the mask token, and MAE's decoder.
_HEADS = ("head.", "head_dist.", "fc.", "dino_head.", "ibot_head.", "pre_logits.", "mask_token", "decoder_")
# DINOv2's training groups the blocks in chunks: blocks.<chunk>.<block>.
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")


def _replace_prefix(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def to_flat(name: str) -> str:
    """Our flat name of a parameter, from its name in any known layout (released, timm or ours)."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    name = _CHUNKED_BLOCK.sub(r"blocks.\1.", _replace_prefix(name, _TO_OURS))
    return _CAMERA_OURS if name == _CAMERA_RELEASED else name


def is_head(name: str) -> bool:
    """Whether a flat name belongs to a head that neither a backbone nor a re-ID model uses."""
    return name.startswith(_HEADS)


def layout_of(names: Iterable[str]) -> str:
    """The released layout of the original names in a file: "reid", "cluster_contrast" or "dino" (any bare backbone)."""
    names = [re.sub(r"^(module\.|_orig_mod\.)+", "", name) for name in names]
    if any(name.startswith("base.") for name in names):
        return "reid"
    return "cluster_contrast" if "bottleneck.weight" in names else "dino"


def released_checkpoint(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """A checkpoint that the loader of the published code reads; write it with torch.save.

    "dino" and "reid" are plain state dicts with the names of `to_released`. The other layouts are wrapped as described at the
    top of this module. Raises the errors of `to_released`.
    """
    names = to_released(state_dict, layout)
    if layout == "dino_teacher":
        prefix = "module.backbone." if "patch_embed.conv.0.weight" in names else "backbone."
        return {"teacher": {prefix + name: value for name, value in names.items()}}
    if layout == "cluster_contrast":
        return {"state_dict": {"module." + name: value for name, value in names.items()}}
    return dict(names)


def to_released(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A state dict of ours (Vit or ReidModel) under the names of a released layout.

    The dino layouts omit neck and classifier, and "cluster_contrast" omits the classifier, because the layouts do not contain
    them. The 1000-class `fc` in released ICS files was never used and is not written. Raises ValueError for an unknown layout,
    for "reid" or "cluster_contrast" if the model has no neck, and for a model with a jigsaw branch.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}: got {layout!r}")
    flat = {to_flat(name): value for name, value in state_dict.items()}
    if any(name.startswith("jigsaw.") for name in flat):
        raise ValueError(
            f"layout {layout!r} has no place for the local features of the jigsaw branch (JPM), so the model would give other "
            "features; export it as safetensors or onnx, or its `backbone` alone"
        )
    if not layout.startswith("dino") and "bottleneck.weight" not in flat:
        raise ValueError(f"layout {layout!r} is that of a re-ID model, and this is a backbone without neck: use layout 'dino'")
    dropped = {"reid": (), "cluster_contrast": ("classifier.",)}.get(layout, _NECK)
    released = {}
    for name, value in flat.items():
        if name.startswith(dropped):
            continue
        is_backbone = not name.startswith(_NECK)
        name = _CAMERA_RELEASED if name == _CAMERA_OURS else _replace_prefix(name, _TO_RELEASED)
        released["base." + name if layout == "reid" and is_backbone else name] = value
    return released


def resize_pos_embed(
    pos_embed: Tensor,
    grid: tuple[int, int],
    old_grid: tuple[int, int] | None = None,
    hw_ratio: float | None = None,
) -> Tensor:
    """Resize position embeddings (1, 1 + n, D) of a checkpoint to (1, 1 + rows * columns, D), bilinear as in the released code.

    Args:
        grid: the new (rows, columns).
        old_grid: (rows, columns) of the checkpoint. Released files do not store it; if None, `pos_grid` finds it.
        hw_ratio: argument of `pos_grid`.
    """
    rows, columns = old_grid or pos_grid(pos_embed.shape[1] - 1, hw_ratio)
    cells = pos_embed[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    return torch.cat((pos_embed[:, :1], cells.flatten(2).transpose(1, 2)), dim=1)


def pos_grid(num_patches: int, hw_ratio: float | None = None) -> tuple[int, int]:
    """(rows, columns) of a stored grid of n patches.

    The published rule for a height:width ratio r (a whole number, such as 2 or 2.0) is rows = int(sqrt(n r)), columns =
    rows // r. If no ratio is given, the first of 1, 2, 3 and 4 whose grid has n cells is used. Raises ValueError if no grid
    fits or the ratio is invalid.
    """
    if hw_ratio is not None and not (hw_ratio >= 1 and float(hw_ratio).is_integer()):
        raise ValueError(f"hw_ratio must be 1 (square) or a larger whole number (height / width): got {hw_ratio}")
    for ratio in (1, 2, 3, 4) if hw_ratio is None else (int(hw_ratio),):
        rows = math.isqrt(num_patches * ratio)
        if rows * (rows // ratio) == num_patches:
            return rows, rows // ratio
    tried = "1, 2, 3 or 4" if hw_ratio is None else str(hw_ratio)
    raise ValueError(
        f"position embeddings of {num_patches} patches fit no grid of height:width {tried}; give the hw_ratio, or the "
        "image_size and stride, that the checkpoint was trained with (on the command line load.image_size=[256,128] "
        "load.stride=12, for example)"
    )


def infer_vit_config(
    tensors: Mapping[str, Tensor],
    source_name: str,
    *,
    heads: int,
    image_size: tuple[int, int] | None = None,
    stride: int = 0,
    hw_ratio: float | None = None,
    own_grid: bool = False,
) -> VitConfig:
    """Configuration of a checkpoint that does not store one, inferred from its tensor shapes.

    Args:
        tensors: tensors by flat names.
        source_name: name of the file in messages.
        heads: number of attention heads, which the shapes do not determine.
        image_size: (height, width) that the caller is going to use. If its grid has as many patches as the checkpoint, it is
            assumed to be the checkpoint's own grid, whatever `hw_ratio` is. The released code does the same: it resizes only if
            the numbers of patches differ. Otherwise patches are assumed not to overlap, and `pos_grid` gives rows and columns.
        stride: stride that belongs to `image_size`.
        hw_ratio: argument of `pos_grid`.
        own_grid: whether `image_size` and `stride` are known to be the checkpoint's own.

    Raises ValueError if the tensors are not a known vision transformer, and with own_grid if the number of patches differs.
    """
    try:
        width = tensors["cls_token"].shape[-1]
        projection = tensors["patch_embed.proj.weight"]
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        num_patches = tensors["pos_embed"].shape[1] - 1
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{source_name} is no vision transformer that we know: it has no {error}, and holds "
            f"{len(tensors)} tensors ({', '.join(list(tensors)[:3])}, ...)"
        ) from None
    if projection.ndim != 4 or not width:
        raise ValueError(
            f"{source_name} is no vision transformer that we know: its patch projection is of shape {tuple(projection.shape)}"
        )
    ics = "patch_embed.conv1.weight" in tensors
    patch_size = projection.shape[-1] * (2 if ics else 1)
    config = VitConfig(
        width=width,
        depth=depth_of(tensors),
        heads=heads,
        mlp_ratio=hidden / width,
        patch_size=patch_size,
        image_size=(patch_size, patch_size),
        stem="ics" if ics else "patch",
        stem_width=tensors["patch_embed.conv1.weight"].shape[0] if ics else 64,
        layer_scale=LAYER_SCALE if "blocks.0.ls1.gamma" in tensors else 0.0,
        num_cameras=len(tensors["camera_embed"]) if "camera_embed" in tensors else 0,
    )
    if image_size is not None:
        wanted = replace(config, image_size=image_size, stride=stride)
        cells = math.prod(wanted.grid(*wanted.image_size))
        if cells == num_patches:
            return wanted
        if own_grid:
            raise ValueError(
                f"{source_name} has position embeddings of {num_patches} patches, and images of {image_size} with "
                f"stride {stride or patch_size} give {cells}: correct image_size or stride"
            )
    rows, columns = pos_grid(num_patches, hw_ratio)
    return replace(config, image_size=(rows * patch_size, columns * patch_size))


def depth_of(tensors: Mapping[str, Tensor]) -> int:
    """Number of transformer blocks in tensors under flat names."""
    return sum(name.endswith(".norm1.weight") and name.startswith("blocks.") for name in tensors)
