"""Copying a checkpoint into a model, with a report. Either the whole backbone is copied or nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reidssl.models.knowledge import About
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import is_head, pos_grid, resize_pos_embed, to_flat
from reidssl.models.vit import Vit

_SHOWN = 6
# A new data set has other identities and cameras, so these parts may be missing, unused, or of another size.
REPLACEABLE = ("bottleneck.", "classifier.", "camera_embed", "jigsaw.")


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_into`. Names are flat parameter names."""

    loaded: list[str]
    """Names copied into the model, including resized ones."""
    skipped: list[str]
    """Names in the file that were not used: heads, and a classifier or neck that the model does not have."""
    resized: list[str]
    """Names interpolated to another grid of patches."""
    missing: list[str]
    """Names in the model without a fitting value in the file; they kept their values."""
    grids: tuple[tuple[int, int], tuple[int, int]] | None = None
    """(rows, columns) of the position embeddings in the file and in the model; None if they were not resized."""
    about: About | None = None
    """Description of the file, set by `load_vit` and `load_reid`."""

    def __str__(self) -> str:
        """The report as one line for a terminal."""
        parts = [f"{f'{self.about}; ' if self.about else ''}{len(self.loaded)} tensors loaded"]
        if self.grids:
            old, new = self.grids
            parts.append(f"position embeddings resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches")
        for names, what in ((self.skipped, "skipped"), (self.missing, "left as they were")):
            if names:
                tops = Counter(name.split(".")[0] for name in names)
                parts.append(f"{len(names)} {what} ({', '.join(tops)})")
        return ", ".join(parts)


class CheckpointMismatch(ValueError):
    """A checkpoint does not fit the model; nothing was copied."""

    def __init__(
        self,
        source_name: str,
        config: VitConfig,
        missing: list[str],
        unexpected: list[str],
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing = missing
        """Names in the model that are not in the file."""
        self.unexpected = unexpected
        """Names in the file that are neither in the model nor of a head, which may be left out."""
        self.shapes = shapes
        """Name -> (shape in the file, shape in the model), for shapes that differ."""
        described = [f"{name} {file} in the file, {model} in the model" for name, (file, model) in shapes.items()]
        found = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", described)]
        beside = all(name.startswith(REPLACEABLE) for name in (*missing, *unexpected, *shapes))
        super().__init__(
            f"{source_name} does not fit this {'re-ID model' if beside else 'backbone'} (stem {config.stem}, "
            f"width {config.width}, depth {config.depth}, patch_size {config.patch_size}, layer_scale {config.layer_scale:g}): "
            f"{'; '.join(filter(None, found))}. "
            + (
                "Its neck or classifier is not ours; load_vit takes the backbone alone"
                if beside
                else "Give the stem, depth and width that it was trained with"
            )
        )


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}" if names else ""


def load_into(
    model: Vit | ReidModel,
    state_dict: Mapping[str, Tensor],
    source_name: str,
    source_grid: tuple[int, int] | None = None,
    hw_ratio: float | None = None,
    replaceable: tuple[str, ...] = REPLACEABLE,
) -> LoadReport:
    """Copy a checkpoint into a model. Position embeddings are resized if the grids of patches differ.

    Projection heads are left out, and so are `replaceable` tensors that do not fit.

    Args:
        state_dict: tensors by flat names, from `read_state_dict`.
        source_name: name of the source in error messages.
        source_grid: (rows, columns) of the source's position embeddings. If None, a source with as many patches as the model
            is assumed to have the model's grid, as in the published code. For other numbers, `pos_grid` finds the grid.
        hw_ratio: height / width of the images that the source was trained on, for the published rule of `pos_grid`.
        replaceable: prefixes of names that may be missing, be unused or have another shape. The default is neck, classifier,
            camera embeddings and jigsaw branch, since a new data set needs new ones.

    Raises CheckpointMismatch with the full lists if any other tensor is missing, unexpected or of another shape. Raises
    ValueError if the file is quantized or has values that are not finite. The model is then unchanged.
    """
    vit = model if isinstance(model, Vit) else model.backbone
    own = {to_flat(name): value for name, value in model.state_dict().items()}
    own_grid = vit.config.grid(*vit.config.image_size)
    prepared: dict[str, Tensor] = {}
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    grids = None
    for name, target in own.items():
        if name not in state_dict:
            continue
        value = state_dict[name]
        if name == "pos_embed" and value.ndim == 3 and value.shape[-1] == target.shape[-1]:
            if source_grid is None and value.shape != target.shape:
                source_grid = pos_grid(value.shape[1] - 1, hw_ratio)
            if source_grid not in (None, own_grid):
                grids = (source_grid, own_grid)
                value = resize_pos_embed(value, own_grid, source_grid)
        if value.shape == target.shape:
            prepared[name] = value
        elif not name.startswith(replaceable):
            shapes[name] = (tuple(value.shape), tuple(target.shape))
    absent = sorted(own.keys() - state_dict.keys())
    # num_batches_tracked exists since torch 0.4. Older files do not have it, and nothing depends on it.
    missing = [name for name in absent if not name.startswith(replaceable) and not name.endswith("num_batches_tracked")]
    extra = sorted(state_dict.keys() - own.keys())
    unexpected = [name for name in extra if not is_head(name) and not name.startswith(replaceable)]
    if missing or unexpected or shapes:
        raise CheckpointMismatch(source_name, vit.config, missing, unexpected, shapes)
    packed = [name for name, value in prepared.items() if own[name].is_floating_point() and not value.is_floating_point()]
    if packed:
        raise ValueError(
            f"{source_name} is quantized: {packed[0]} and {len(packed) - 1} more hold {prepared[packed[0]].dtype}, "
            "no floating point numbers; take the model that it was made from"
        )
    broken = sorted(name for name, value in prepared.items() if not bool(value.isfinite().all()))
    if broken:
        raise ValueError(
            f"{source_name} has values that are not finite (NaN or infinite) in {_listed('tensors', broken)}: its "
            "training diverged or the file is damaged; take an earlier checkpoint"
        )
    with torch.no_grad():
        for name, value in prepared.items():
            own[name].copy_(value)
    return LoadReport(
        loaded=sorted(prepared),
        skipped=sorted(state_dict.keys() - prepared.keys()),
        resized=["pos_embed"] if grids else [],
        missing=sorted(own.keys() - prepared.keys()),
        grids=grids,
    )
