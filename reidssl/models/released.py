"""The method's released checkpoints: names of parameters, to ours and back, and what their shapes tell.

Our flat names are those of `Vit` (which are timm's outside the ICS stem) plus `bottleneck.*` and
`classifier.*`. Layouts that we write:
    dino              the backbone alone, as pre-training exports it
    dino_teacher      the same as a DINO training checkpoint holds it: under "teacher", with `backbone.` before the names
                      (`module.backbone.` with the ICS stem, whose training wraps the teacher)
    reid              supervised model: `base.` before the backbone's names, neck and classifier beside it
    cluster_contrast  unsupervised model: backbone and neck side by side, with `module.`, under "state_dict"
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
# What sits on top of a backbone in the published files and means nothing without its training: projection heads of DINO,
# iBOT and DINOv2, classifiers of timm, DeiT and the supervised model, the token of masked patches, the decoder of MAE.
_HEADS = ("head.", "head_dist.", "fc.", "dino_head.", "ibot_head.", "pre_logits.", "mask_token", "decoder_")
# DINOv2's training keeps its blocks in chunks: blocks.<chunk>.<block>.
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")


def _replace_prefix(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def to_flat(name: str) -> str:
    """A parameter's name in any known layout (released, timm or ours) -> our flat name."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    name = _CHUNKED_BLOCK.sub(r"blocks.\1.", _replace_prefix(name, _TO_OURS))
    return _CAMERA_OURS if name == _CAMERA_RELEASED else name


def is_head(name: str) -> bool:
    """Whether a flat name belongs to a head that a backbone or re-ID model has no use for."""
    return name.startswith(_HEADS)


def layout_of(names: Iterable[str]) -> str:
    """The released layout that a file's own names are in: "reid", "cluster_contrast" or "dino" (any bare backbone)."""
    names = [re.sub(r"^(module\.|_orig_mod\.)+", "", name) for name in names]
    if any(name.startswith("base.") for name in names):
        return "reid"
    return "cluster_contrast" if "bottleneck.weight" in names else "dino"


def released_checkpoint(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """What the published code's own loader wants to find in a torch file: names of `to_released`, wrapped.

    Write it with torch.save. "dino" and "reid" are plain state dicts, the others are wrapped as the module's
    docstring says.
    """
    names = to_released(state_dict, layout)
    if layout == "dino_teacher":
        prefix = "module.backbone." if "patch_embed.conv.0.weight" in names else "backbone."
        return {"teacher": {prefix + name: value for name, value in names.items()}}
    if layout == "cluster_contrast":
        return {"state_dict": {"module." + name: value for name, value in names.items()}}
    return dict(names)


def to_released(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A state dict of ours (Vit or ReidModel) with the names of a released layout.

    The dino layouts leave neck and classifier out and "cluster_contrast" the classifier, since those layouts have no
    place for them; the other way, "reid" and "cluster_contrast" need a model with a neck. The 1000-class `fc`
    that released ICS files carry was never used and is not written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}: got {layout!r}")
    flat = {to_flat(name): value for name, value in state_dict.items()}
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
    """Position embeddings (1, 1 + n, D) of a checkpoint -> (1, 1 + rows * columns, D), bilinear, as the released code.

    Released files do not store the old grid. Where `old_grid` is not given, `pos_grid` finds it.
    """
    rows, columns = old_grid or pos_grid(pos_embed.shape[1] - 1, hw_ratio)
    cells = pos_embed[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    return torch.cat((pos_embed[:, :1], cells.flatten(2).transpose(1, 2)), dim=1)


def pos_grid(num_patches: int, hw_ratio: float | None = None) -> tuple[int, int]:
    """(rows, columns) of a stored grid of n patches.

    The published rule, for a height:width ratio r (a whole number, 2 or 2.0): rows = int(sqrt(n r)), columns = rows // r. Where
    no ratio is given, the first of 1, 2, 3 and 4 whose grid has n cells. ValueError where there is none.
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
    """The configuration of a checkpoint that does not carry one, from its shapes; they do not tell the attention heads.

    `image_size` and `stride` are what the caller is going to use: where their grid has as many patches as the
    checkpoint, it is taken to be the checkpoint's own, whatever `hw_ratio` says (so does the released code, which resizes only
    where the numbers differ). Otherwise patches do not overlap and `pos_grid` tells rows and columns. own_grid: they are said to
    be the checkpoint's own, and another number of patches is a ValueError.
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
    """Number of transformer blocks."""
    return sum(name.endswith(".norm1.weight") and name.startswith("blocks.") for name in tensors)
