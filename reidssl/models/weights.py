"""Model files: safetensors with the configuration in the header, and reading of released checkpoints.

A file of ours rebuilds its model by itself: the header holds "kind" ("backbone" or "reid"), "vit" (VitConfig
as JSON) and, for re-ID models, "num_classes" and "cosine" (the kind of classifier). Released torch files are
read without running any code stored in them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from reidssl.models.building import build_empty
from reidssl.models.given import LoadConfig, Unsaid
from reidssl.models.loading import CheckpointMismatch, LoadReport, load_into
from reidssl.models.reading import Checkpoint, read_checkpoint, read_metadata, read_state_dict
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit
from reidssl.models.weight_files import ModelFile, Source

__all__ = [
    "Checkpoint",
    "CheckpointMismatch",
    "LoadConfig",
    "LoadReport",
    "ModelFile",
    "Source",
    "Unsaid",
    "load_into",
    "load_reid",
    "load_vit",
    "model_bytes",
    "read_checkpoint",
    "read_metadata",
    "read_state_dict",
    "save_model",
    "weights_hash",
]


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


def load_vit(
    source: Source | ModelFile | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    given: LoadConfig | None = None,
    on_load: Callable[[LoadReport], object] | None = None,
    **changes: Any,
) -> Vit:
    """The backbone of a file of ours or a released one, in eval mode.

    Args:
        weights: which of the models in a training checkpoint, e.g. "student"; empty as for `read_checkpoint`: the teacher.
        hw_ratio: height / width of the images that a released file was trained on, where its number of patches leaves
            that open (16 could be 4 x 4 or 8 x 2) or is not understood. Our own files know it. As in the published rule it
            counts only where the number of patches is not that of `image_size`.
        given: what else the file does not say and the caller knows.
        on_load: called with the report, which says what the file says, what was given and what is assumed, e.g. `print`.
        changes: fields of VitConfig to change, e.g. drop_path=0.1 or image_size=(384, 128). heads is no change: it says what
            a released file does not.

    Raises ValueError for a file that is no ViT or has values that are not finite, Unsaid (a ValueError) for one that does not
    say how many heads it has or which of its models is meant, CheckpointMismatch for one that does not fit `changes`.
    """
    given = given or LoadConfig()
    checkpoint = read_checkpoint(source, weights or given.weights)
    vit, source_grid, about = build_empty(checkpoint, hw_ratio, given, changes)
    report = load_into(vit, checkpoint.tensors, checkpoint.name, source_grid)
    if on_load:
        on_load(replace(report, about=about))
    return vit.eval()


def load_reid(
    source: Source | ModelFile | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    cosine: bool | None = None,
    given: LoadConfig | None = None,
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
    given = given or LoadConfig()
    checkpoint = read_checkpoint(source, weights or given.weights)
    if not checkpoint.is_reid:
        raise ValueError(
            f"{checkpoint.name} is a backbone without neck, not a re-ID model; load it with load_vit and fine-tune it first"
        )
    vit, source_grid, about = build_empty(checkpoint, hw_ratio, given, changes)
    classifier = checkpoint.tensors.get("classifier.weight")
    if cosine is None:
        cosine = checkpoint.metadata.get("cosine") == "true"
    model = ReidModel(vit, 0 if classifier is None or not classifier.ndim else len(classifier), cosine=cosine)
    report = load_into(model, checkpoint.tensors, checkpoint.name, source_grid, replaceable=("camera_embed",))
    if on_load:
        on_load(replace(report, about=about))
    return model.eval()
