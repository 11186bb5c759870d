"""What is inside a model file: safetensors, or a torch file of plain tensors. No code stored in a file is ever run."""

import argparse
import io
import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from reidssl.models.strange_files import what_instead

Source = bytes | str | os.PathLike[str]

# Names under which a folder holds its model, the most finished first.
MODEL_FILES = ("model.safetensors", "backbone.safetensors", "pytorch_model.bin")
SHARD_INDEX = "model.safetensors.index.json"
_NUMPY_SCALARS = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
# Plain values that training codes store beside the tensors: their options, and scores as NumPy numbers (under the names
# that NumPy 1 and 2 give them). None of these runs anything that comes from the file.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *_NUMPY_SCALARS,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
]
# Torch files are zip archives, or since before 1.6 pickles (of protocol 2 and up).
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")
# What torch.load lets through on bytes that are no checkpoint.
_DAMAGES = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


def nothing_beside(name: str) -> bytes | None:
    """For bytes that come from no folder."""
    return None


class ModelFile(NamedTuple):
    """A file that was read, and its folder."""

    data: bytes
    name: str
    """For messages."""
    beside: Callable[[str], bytes | None] = nothing_beside
    """The content of another file of the same folder, by its plain name; None where there is none."""


def read_source(source: Source | ModelFile) -> ModelFile:
    """The file, or the model in a folder: one file, or the index of its shards. ValueError for a folder without one."""
    if isinstance(source, ModelFile):
        return source
    if isinstance(source, bytes):
        return ModelFile(source, "the checkpoint")
    path = Path(source)
    if not path.is_dir():
        refuse_part(path.name, os.fspath(source))
        return ModelFile(path.read_bytes(), os.fspath(source), _reader(path.parent))
    for name in (*MODEL_FILES, SHARD_INDEX):
        if (path / name).is_file():
            return ModelFile((path / name).read_bytes(), os.fspath(source), _reader(path))
    wanted = ", ".join((*MODEL_FILES, SHARD_INDEX))
    raise ValueError(f"{os.fspath(source)} is a folder without a model: none of {wanted} is in it; name the file")


def refuse_part(file_name: str, name: str) -> None:
    """ValueError for a part of a model in shards that was named alone."""
    if file_name.endswith(".index.json"):
        raise ValueError(f"{name} is a sharded safetensors index, a list of files: name its folder")
    if re.search(r"-\d{5}-of-\d{5}\.\w+$", file_name):
        raise ValueError(f"{name} is one shard of a model in several files: name its folder")


def _reader(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def read_content(file: ModelFile) -> Any:
    """What a safetensors or torch file holds, on the CPU: usually tensors by name, perhaps inside other dicts.

    Raises ValueError saying what to do for a damaged file, for one that is no model at all, and for one that needs more than
    plain values, naming the class it asks for.
    """
    data, name = file.data, file.name
    if _is_safetensors(data):
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, *_DAMAGES) as error:
            raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error
    index = shard_index(data)
    if index is not None:
        return _shards(index, file)
    instead = what_instead(data)
    if instead or not data.startswith(_TORCH_BEGINNINGS):
        raise ValueError(f"{name} is neither a safetensors nor a torch file{instead or ': fetch it again, or name another file'}")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGES as error:
        # "Unsupported global: GLOBAL some.module.Class was not ..." or "Unsupported class some.module.Class"
        wanted = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if wanted:
            raise ValueError(
                f"{name} holds an object of {wanted[1]} and is refused as dangerous: unpickling anything but plain tensors can "
                "run code. Where you trust it, load it with the code that wrote it and save the weights alone: "
                "torch.save(checkpoint['state_dict'], 'weights.pth'), with the key under which they are"
            ) from error
        raise ValueError(
            f"{name} is neither a safetensors nor a torch file of plain tensors, or it is damaged "
            f"({type(error).__name__}): fetch it again"
        ) from error


def shard_index(data: bytes) -> dict[str, str] | None:
    """Tensor name -> file of a `model.safetensors.index.json`; None for anything else."""
    if not data[:64].lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(data)
    except ValueError:
        return None
    table = found.get("weight_map") if isinstance(found, dict) else None
    return table if isinstance(table, dict) else None


def _shards(index: dict[str, str], file: ModelFile) -> dict[str, Any]:
    """The tensors of all shards that an index lists. ValueError for a shard that is missing or not a plain name."""
    files = sorted({str(each) for each in index.values()})
    for each in files:
        # A name from a file must not lead out of its folder.
        if each in ("", ".", "..") or "/" in each or "\\" in each or "\0" in each:
            raise ValueError(f"{file.name} lists the shard {each!r}, which is no plain file name: it is refused")
    tensors: dict[str, Any] = {}
    for each in files:
        data = file.beside(each)
        if data is None:
            raise ValueError(f"{file.name} lists the shard {each}, which is not there: fetch all of its {len(files)} shards")
        if not _is_safetensors(data):
            raise ValueError(f"{each} of {file.name} is no safetensors file{what_instead(data)}: fetch it again")
        tensors |= read_content(ModelFile(data, f"{each} of {file.name}"))
    missing = sorted(index.keys() - tensors.keys())
    if missing:
        raise ValueError(
            f"{file.name} lists {len(missing)} tensors that its shards do not have ({missing[0]}, ...): they belong "
            "to another version; fetch the whole folder again"
        )
    return tensors


def read_header(file: ModelFile) -> dict[str, str]:
    """The metadata of a safetensors file; empty for a torch file. ValueError if it is damaged."""
    data, name = file.data, file.name
    if not _is_safetensors(data):
        return {}
    try:
        return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error


def _is_safetensors(data: bytes) -> bool:
    """After 8 bytes of header length comes JSON; the format allows 100 MB of it, and text read as a length gives more."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= 100_000_000


def keys_of(content: Any) -> str:
    """What a message says of content that is no state dict."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = ", ".join(repr(key) for key in list(content)[:6])
    return f"{len(content)} entries ({shown}{', ...' if len(content) > 6 else ''})" if content else "nothing"
