"""Model files: saving as safetensors with the configuration in the header, and loading of our own and foreign checkpoints.

The model can be rebuilt from a file of ours alone: the header holds "kind" ("backbone" or "reid"), "vit" (VitConfig as JSON)
and, for re-ID models, "num_classes", "cosine" (kind of classifier) and "jigsaw" (JigsawConfig, if it has local parts). Code
stored in released torch files is never run.
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
from reidssl.models.model_config import JigsawConfig
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
    """The model as the bytes of a safetensors file, for `load_vit` and `load_reid`.

    metadata: further entries of the header, as strings or as values that are stored as JSON.
    """
    vit = module if isinstance(module, Vit) else module.backbone
    header = dict(metadata or {})
    header |= {"format": "pt", "kind": "backbone" if module is vit else "reid", "vit": asdict(vit.config)}
    if isinstance(module, ReidModel):
        header |= {"num_classes": module.num_classes, "cosine": module.cosine}
        header |= {"jigsaw": asdict(module.jigsaw.config)} if module.jigsaw else {}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return safetensors.torch.save(tensors, metadata=text)


def save_model(module: Vit | ReidModel, metadata: Mapping[str, Any] | None, path: str | os.PathLike[str]) -> None:
    """Write `model_bytes` to a local file. The write is atomic: the file is complete or not there."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes(model_bytes(module, metadata))
    partial.replace(target)


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 (hex) of the names, dtypes, shapes and values of all parameters and buffers."""
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
    """Load the backbone of our own or a foreign model file, in eval mode.

    Args:
        source: bytes, path, ModelFile or Checkpoint.
        weights: which of the models in a training checkpoint to load, e.g. "student". Empty: the default of `read_checkpoint`.
        hw_ratio: height / width of the images that a released file was trained on. It is needed if the number of patches does
            not determine the grid (16 can be 4 x 4 or 8 x 2). Our own files store the grid. As in the published rule, it is used
            only if the number of patches is not that of `image_size`.
        given: further properties that the file does not state.
        on_load: called with the report, e.g. `print`. The report lists what the file states, what was given and what is
            assumed.
        changes: fields of VitConfig to change, e.g. drop_path=0.1 or image_size=(384, 128). `heads` is an exception: it gives
            the number of heads of a file that does not state it.

    Raises ValueError for a file that is not a ViT or has values that are not finite, Unsaid (a ValueError) if the number of heads
    or the choice between several models is unknown, and CheckpointMismatch if the file does not fit `changes`.
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
    """Load the re-ID model of a file, in eval mode. Other arguments as for `load_vit`.

    Args:
        cosine: whether the classifier computes cosines, as after training with ArcFace, CosFace or circle loss. None: as our own
            files state it; linear for foreign files, which do not state it.

    Raises CheckpointMismatch if neck or classifier are incomplete or do not have the backbone's width; only camera embeddings may
    differ (`num_cameras`). Raises ValueError if the file is a backbone without neck. Other errors as for `load_vit`.
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
    num_classes = 0 if classifier is None or not classifier.ndim else len(classifier)
    model = ReidModel(vit, num_classes, cosine=cosine, jigsaw=_stored_jigsaw(checkpoint))
    report = load_into(model, checkpoint.tensors, checkpoint.name, source_grid, replaceable=("camera_embed",))
    if on_load:
        on_load(replace(report, about=about))
    return model.eval()


def _stored_jigsaw(checkpoint: Checkpoint) -> JigsawConfig | None:
    """The jigsaw branch in the header of a file of ours; None without. Raises ValueError if the entry cannot be read."""
    if "jigsaw" not in checkpoint.metadata:
        return None
    try:
        return JigsawConfig(**json.loads(checkpoint.metadata["jigsaw"]))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{checkpoint.name} has a "jigsaw" entry in its header that describes no jigsaw branch ({error}): it was written by '
            "another version, or changed since"
        ) from error
