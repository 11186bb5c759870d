"""Model files: safetensors with the configuration in the header, and reading of released checkpoints.

A file of ours rebuilds its model by itself: the header holds "kind" ("backbone" or "reid"), "vit" (VitConfig
as JSON) and, for re-ID models, "num_classes". Released torch files are read without running any code stored
in them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from reidssl.models.reid import ReidModel
from reidssl.models.released import infer_vit_config, resize_pos_embed, to_flat
from reidssl.models.vit import Vit, VitConfig, build_vit

Source = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did, as flat parameter names."""

    loaded: list[str]
    """Copied into the model, the resized ones included."""
    skipped: list[str]
    """In the file and not used."""
    resized: list[str]
    """Interpolated to another grid of patches."""
    missing: list[str]
    """In the model and not in the file: left as they were."""


def model_bytes(module: Vit | ReidModel, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The model as a safetensors file that `load_vit` and `load_reid` rebuild it from.

    `metadata` (strings, or anything JSON) goes into the header beside what rebuilding needs.
    """
    vit = module if isinstance(module, Vit) else module.backbone
    header = dict(metadata or {})
    header |= {"format": "pt", "kind": "backbone" if module is vit else "reid", "vit": asdict(vit.config)}
    if isinstance(module, ReidModel):
        header["num_classes"] = module.num_classes
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
    data, name = _read(source)
    return _metadata(data, name)


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, under our flat names.

    Understands our safetensors, and torch files in the released layouts: plain, wrapped in "teacher",
    "state_dict" or "model", with `module.`, `backbone.` or `base.` before the names. Of a whole DINO
    checkpoint it takes the teacher.
    """
    return _tensors(*_read(source))


def load_into(
    model: Vit | ReidModel,
    state_dict: Mapping[str, Tensor],
    source_name: str,
    source_grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Copy matching tensors into a model, the position embeddings resized where the grids of patches differ.

    Heads and classifiers of another size are skipped, since a new data set needs new ones. A backbone tensor
    (camera embeddings apart) that is missing or of another shape is an error: part of a backbone is no
    backbone.

    Args:
        state_dict: flat names, as `read_state_dict` gives them.
        source_name: for error messages.
        source_grid: (rows, columns) of the source's position embeddings; guessed from their number if not given.
    """
    own = {to_flat(name): value for name, value in model.state_dict().items()}
    vit = model if isinstance(model, Vit) else model.backbone
    prepared: dict[str, Tensor] = {}
    resized = []
    for name, target in own.items():
        if name not in state_dict:
            if _is_backbone(name):
                raise ValueError(
                    f"{source_name} has no {name!r}, so it does not fit this backbone "
                    f"({_describe(vit.config)}); give the stem, depth and width that it was trained with"
                )
            continue
        value = state_dict[name]
        if name == "pos_embed" and value.shape != target.shape and value.shape[-1] == target.shape[-1]:
            value = resize_pos_embed(value, vit.config.grid(*vit.config.image_size), source_grid)
            resized.append(name)
        if value.shape != target.shape:
            if _is_backbone(name):
                raise ValueError(
                    f"{source_name}: {name} has shape {tuple(value.shape)} and this backbone "
                    f"({_describe(vit.config)}) needs {tuple(target.shape)}; "
                    "give the stem, depth and width that it was trained with"
                )
            continue
        prepared[name] = value
    with torch.no_grad():
        for name, value in prepared.items():
            own[name].copy_(value)
    return LoadReport(
        loaded=sorted(prepared),
        skipped=sorted(state_dict.keys() - prepared.keys()),
        resized=resized,
        missing=sorted(own.keys() - prepared.keys()),
    )


def load_vit(source: Source, **changes: Any) -> Vit:
    """The backbone of a file of ours or a released one, in eval mode.

    Args:
        changes: fields of VitConfig to change, e.g. drop_path=0.1 or image_size=(384, 128).
    """
    data, name = _read(source)
    tensors, metadata = _tensors(data, name), _metadata(data, name)
    if "vit" in metadata:
        config = VitConfig(**json.loads(metadata["vit"]))
    else:
        config = infer_vit_config(tensors, name)
    vit = build_vit(replace(config, **changes))
    load_into(vit, tensors, name, config.grid(*config.image_size))
    return vit.eval()


def load_reid(source: Source, **changes: Any) -> ReidModel:
    """The re-ID model of a file, in eval mode; `changes` as for `load_vit`.

    ValueError if the file is a backbone alone.
    """
    data, name = _read(source)
    tensors = _tensors(data, name)
    if "bottleneck.weight" not in tensors:
        raise ValueError(
            f"{name} is a backbone without neck, not a re-ID model; load it with load_vit and fine-tune it first"
        )
    num_classes = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
    model = ReidModel(load_vit(source, **changes), num_classes)
    load_into(model, tensors | model.backbone.state_dict(), name)  # the backbone is loaded, and perhaps resized
    return model.eval()


def _read(source: Source) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the checkpoint"
    return Path(source).read_bytes(), os.fspath(source)


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{"  # after 8 bytes of header length comes JSON


def _tensors(data: bytes, name: str) -> dict[str, Tensor]:
    if _is_safetensors(data):
        try:
            content: Any = safetensors.torch.load(data)
        except SafetensorError as error:
            raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error
    else:
        content = _load_torch(data, name)
    for key in ("teacher", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    is_state_dict = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not content or not is_state_dict:
        raise ValueError(
            f"{name} holds no state dict: expected names with tensors, plain or under teacher, state_dict or model"
        )
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        if to_flat(key) in flat:
            raise ValueError(
                f"{name} has {to_flat(key)!r} twice (once as {key!r}): it holds several models; extract one first"
            )
        flat[to_flat(key)] = value
    return flat


def _metadata(data: bytes, name: str) -> dict[str, str]:
    if not _is_safetensors(data):
        return {}
    try:
        return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except ValueError as error:
        raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error


def _load_torch(data: bytes, name: str) -> Any:
    try:
        # DINO's checkpoints carry their argparse.Namespace, a plain bag of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{name} is neither safetensors nor a torch file of plain tensors, or it is damaged; files with "
            f"other objects are refused because unpickling them can run code ({type(error).__name__})"
        ) from error


def _is_backbone(name: str) -> bool:
    return not name.startswith(("bottleneck.", "classifier.", "camera_embed"))


def _describe(config: VitConfig) -> str:
    return f"stem {config.stem}, width {config.width}, depth {config.depth}, patch_size {config.patch_size}"
