"""Copying a checkpoint into a model: all of the backbone or nothing, with a report."""

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
# A new data set has its own identities and cameras: these may be missing, be left over, or have another size.
REPLACEABLE = ("bottleneck.", "classifier.", "camera_embed")


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did, as flat parameter names."""

    loaded: list[str]
    """Copied into the model, the resized ones included."""
    skipped: list[str]
    """In the file and not used: heads, and a classifier or neck that the model has no place for."""
    resized: list[str]
    """Interpolated to another grid of patches."""
    missing: list[str]
    """In the model and without a fitting value in the file: left as they were."""
    grids: tuple[tuple[int, int], tuple[int, int]] | None = None
    """(rows, columns) of the position embeddings in the file and in the model, where they were resized."""
    about: About | None = None
    """What is known of the file, by `load_vit` and `load_reid`."""

    def __str__(self) -> str:
        """One line for a terminal."""
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
    """A checkpoint that does not fit the model; nothing was copied."""

    def __init__(
        self,
        source_name: str,
        config: VitConfig,
        missing: list[str],
        unexpected: list[str],
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing = missing
        """In the model and not in the file."""
        self.unexpected = unexpected
        """In the file, not in the model, and not a head that may be left out."""
        self.shapes = shapes
        """Name -> (shape in the file, shape in the model), where they differ."""
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
    """Copy a checkpoint into a model, the position embeddings resized where the grids of patches differ.

    Projection heads are left out, and what is `replaceable` where it does not fit. Anything else that is missing, left over or
    of another shape means that the file is of another model: CheckpointMismatch with the full lists, and the model stays as it
    was. So it does where the file has numbers that are not finite: ValueError with their names.

    Args:
        state_dict: flat names, as `read_state_dict` gives them.
        source_name: for error messages.
        source_grid: (rows, columns) of the source's position embeddings. Where it is not given, as many patches as the
            model has are taken to be its grid (so does the published code), and other numbers go by `hw_ratio`.
        hw_ratio: height / width of the images that the source was trained on, for the published rule of `pos_grid`.
        replaceable: beginnings of the names that may be missing, be left over or have another shape. By default neck,
            classifier and camera embeddings: a new data set needs new ones.
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
    # Counters of batches came with torch 0.4; older files lack them and nothing depends on them.
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
