"""Model files: safetensors with the configuration in the header, and reading of released checkpoints.

A file of ours rebuilds its model by itself: the header holds "kind" ("backbone" or "reid"), "vit" (VitConfig
as JSON) and, for re-ID models, "num_classes" and "cosine" (the kind of classifier). Released torch files are
read without running any code stored in them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from reidssl.models.files import Source, find_state_dict, read_content, read_header, read_source
from reidssl.models.loading import CheckpointMismatch, LoadReport, load_into
from reidssl.models.reid import ReidModel
from reidssl.models.released import infer_vit_config, layout_of, to_flat
from reidssl.models.vit import Vit, VitConfig, build_vit

__all__ = [
    "Checkpoint", "CheckpointMismatch", "LoadReport", "Source", "load_into", "load_reid", "load_vit", "model_bytes",
    "read_checkpoint", "read_metadata", "read_state_dict", "save_model", "weights_hash",
]


class Checkpoint(NamedTuple):
    """A model file that was read."""

    tensors: dict[str, Tensor]
    """Under our flat names, on the CPU."""
    metadata: dict[str, str]
    """The header's entries of a safetensors file; empty for a torch file."""
    layout: str
    """The released layout of the names in the file, as `released.layout_of` tells it."""
    name: str
    """For messages."""

    @property
    def is_reid(self) -> bool:
        """Whether there is a batch-norm neck, so that `load_reid` can make a re-ID model of it."""
        return "bottleneck.weight" in self.tensors


def model_bytes(module: Vit | ReidModel, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The model as a safetensors file that `load_vit` and `load_reid` rebuild it from.

    `metadata` (strings, or anything JSON) goes into the header beside what rebuilding needs.
    """
    vit = module if isinstance(module, Vit) else module.backbone
    header = dict(metadata or {})
    header |= {"format": "pt", "kind": "backbone" if module is vit else "reid", "vit": asdict(vit.config)}
    if isinstance(module, ReidModel):
        header |= {"num_classes": module.num_classes, "cosine": module.cosine}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return safetensors.torch.save(tensors, metadata=text)


def save_model(module: Vit | ReidModel, metadata: Mapping[str, Any] | None, path: str | os.PathLike[str]) -> None:
    """Write `model_bytes` to a local file, which appears whole or not at all."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes(model_bytes(module, metadata))
    partial.replace(target)


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 (hex) of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_metadata(source: Source) -> dict[str, str]:
    """The header's entries of a safetensors file; empty for a torch file."""
    return read_header(*read_source(source))


def read_checkpoint(source: Source | Checkpoint, weights: str = "") -> Checkpoint:
    """A model file of ours or of anybody who trains such backbones.

    Understands safetensors, and torch files of plain tensors: DINO and DINOv2 training checkpoints, bare backbones, the
    supervised re-ID model, Cluster Contrast's, timm's and torch-hub's ViTs. That is: names plain or under "teacher",
    "state_dict", "model" or "student" (the first that is there), with `module.`, `backbone.` or `base.` before them.

    Args:
        weights: the key to take instead, e.g. "student". A Checkpoint is returned as it was read.

    Raises ValueError that names the file and says what is wrong with it.
    """
    if isinstance(source, Checkpoint):
        return source
    data, name = read_source(source)
    found = find_state_dict(read_content(data, name), name, weights)
    flat: dict[str, Tensor] = {}
    for key, value in found.items():
        if to_flat(key) in flat:
            raise ValueError(
                f"{name} has {to_flat(key)!r} twice (once as {key!r}): it holds several models; extract one first"
            )
        flat[to_flat(key)] = value
    return Checkpoint(flat, read_header(data, name), layout_of(found), name)


def read_state_dict(source: Source, weights: str = "") -> dict[str, Tensor]:
    """The tensors of `read_checkpoint`: flat names, on the CPU."""
    return read_checkpoint(source, weights).tensors


def load_vit(
    source: Source | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    on_load: Callable[[LoadReport], object] | None = None,
    **changes: Any,
) -> Vit:
    """The backbone of a file of ours or a released one, in eval mode.

    Args:
        weights: which of the models in a training checkpoint, e.g. "student"; empty as for `read_checkpoint`: the teacher.
        hw_ratio: height / width of the images that a released file was trained on, where its number of patches leaves
            that open (16 could be 4 x 4 or 8 x 2) or is not understood. Our own files know it. As in the published rule it
            counts only where the number of patches is not that of `image_size`.
        on_load: called with the report, e.g. `print`.
        changes: fields of VitConfig to change, e.g. drop_path=0.1 or image_size=(384, 128).

    Raises ValueError for a file that is no ViT or has values that are not finite, CheckpointMismatch for one that does not
    fit `changes`.
    """
    checkpoint = read_checkpoint(source, weights)
    vit, source_grid = _build(checkpoint, hw_ratio, changes)
    report = load_into(vit, checkpoint.tensors, checkpoint.name, source_grid)
    if on_load:
        on_load(report)
    return vit.eval()


def load_reid(
    source: Source | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    cosine: bool | None = None,
    on_load: Callable[[LoadReport], object] | None = None,
    **changes: Any,
) -> ReidModel:
    """The re-ID model of a file, in eval mode; arguments as for `load_vit`.

    Neck and classifier must be whole and of the backbone's width, else CheckpointMismatch; only camera embeddings may differ
    (`num_cameras`). ValueError if the file is a backbone alone.

    Args:
        cosine: whether the classifier gives cosines, as those trained with ArcFace, CosFace or circle loss do. None: what our
            own files say, and linear for released ones, which do not tell.
    """
    checkpoint = read_checkpoint(source, weights)
    if not checkpoint.is_reid:
        raise ValueError(
            f"{checkpoint.name} is a backbone without neck, not a re-ID model; load it with load_vit and fine-tune it first"
        )
    vit, source_grid = _build(checkpoint, hw_ratio, changes)
    classifier = checkpoint.tensors.get("classifier.weight")
    if cosine is None:
        cosine = checkpoint.metadata.get("cosine") == "true"
    model = ReidModel(vit, 0 if classifier is None or not classifier.ndim else len(classifier), cosine=cosine)
    report = load_into(model, checkpoint.tensors, checkpoint.name, source_grid, replaceable=("camera_embed",))
    if on_load:
        on_load(report)
    return model.eval()


def _build(checkpoint: Checkpoint, hw_ratio: float | None, changes: dict[str, Any]) -> tuple[Vit, tuple[int, int]]:
    """An empty backbone for the file with `changes`, and the grid of the file's position embeddings."""
    known = [field.name for field in fields(VitConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be changed: a backbone's configuration has {', '.join(known)}")
    if "vit" in checkpoint.metadata:
        config = _stored_config(checkpoint)
    else:
        config = infer_vit_config(
            checkpoint.tensors,
            checkpoint.name,
            image_size=changes.get("image_size"),
            stride=changes.get("stride", 0),
            hw_ratio=hw_ratio,
        )
    return build_vit(replace(config, **changes)), config.grid(*config.image_size)


def _stored_config(checkpoint: Checkpoint) -> VitConfig:
    """What the header of a file of ours says; ValueError where it says nothing that we understand."""
    try:
        return VitConfig(**json.loads(checkpoint.metadata["vit"]))
    except (ValueError, TypeError) as error:  # JSON that is broken; fields or types that are not ours
        raise ValueError(
            f"{checkpoint.name} has a \"vit\" entry in its header that is no configuration of a backbone ({error}): it was "
            "written by another version, or changed since"
        ) from error
