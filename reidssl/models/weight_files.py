"""Reading the content of model files: safetensors, or torch files of plain tensors. Code stored in a file is never run."""

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

from reidssl.models.strange_files import foreign_object, what_instead

Source = bytes | str | os.PathLike[str]

# File names of the model in a folder, in order of preference.
MODEL_FILES = ("model.safetensors", "backbone.safetensors", "pytorch_model.bin")
SHARD_INDEX = "model.safetensors.index.json"
_NUMPY_SCALARS = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
# Plain values that training programs store beside the tensors: their options, and scores as NumPy numbers (under the names
# of NumPy 1 and NumPy 2). Unpickling these types runs no code from the file.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *_NUMPY_SCALARS,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
]
# First bytes of torch files: zip archives, or before torch 1.6 pickles (protocol 2 and higher).
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")
# Exceptions that torch.load raises for bytes that are not a checkpoint.
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
    """Always None: the value of `ModelFile.beside` for bytes that do not come from a folder."""
    return None


class ModelFile(NamedTuple):
    """The content of a model file, and access to the other files of its folder."""

    data: bytes
    name: str
    """Name of the file in messages."""
    beside: Callable[[str], bytes | None] = nothing_beside
    """Function from a plain file name to the content of that file in the same folder; None if there is no such file."""


def read_source(source: Source | ModelFile) -> ModelFile:
    """Read a model file. For a folder, read the model file in it, or the index of its shards.

    Raises ValueError for a folder without a model, and for a single shard or a bare index.
    """
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
    """Raise ValueError if `file_name` is only a part (index or shard) of a sharded model."""
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
    """The content of a safetensors or torch file, on the CPU: usually tensors by name, possibly in nested dicts.

    Raises ValueError for a damaged file, for a file that is not a model, and for a file that contains objects other than plain
    values (the message names their class). The message says what to do.
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
        foreign = wanted[1] if wanted else foreign_object(data)
        if foreign:
            raise ValueError(
                f"{name} holds an object of {foreign} and is refused as dangerous: unpickling anything but plain tensors can "
                "run code. Where you trust it, load it with the code that wrote it and save the weights alone: "
                "torch.save(checkpoint['state_dict'], 'weights.pth'), with the key under which they are"
            ) from error
        raise ValueError(
            f"{name} is neither a safetensors nor a torch file of plain tensors, or it is damaged "
            f"({type(error).__name__}): fetch it again"
        ) from error


def shard_index(data: bytes) -> dict[str, str] | None:
    """Tensor name -> file name, from the content of a `model.safetensors.index.json`; None for any other content."""
    if not data[:64].lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # no JSON, or nested more deeply than any index
        return None
    table = found.get("weight_map") if isinstance(found, dict) else None
    return table if isinstance(table, dict) else None


def _shards(index: dict[str, str], file: ModelFile) -> dict[str, Any]:
    """The tensors of all shards that an index lists.

    Raises ValueError for a shard that is missing or is not safetensors, for a shard name that is not a plain file name, and
    for a tensor that is listed but not in the shards.
    """
    files = sorted({str(each) for each in index.values()})
    for each in files:
        # The names come from a file, so they must not be able to lead out of its folder.
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
    """The metadata of a safetensors file; empty for a torch file. Raises ValueError if the header is damaged."""
    data, name = file.data, file.name
    if not _is_safetensors(data):
        return {}
    try:
        return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error


def _is_safetensors(data: bytes) -> bool:
    """Whether the data are in safetensors format: 8 bytes with the length of the header, then the header as JSON.

    The format limits the header to 100 MB. Text whose first 8 bytes are read as a length gives more than that.
    """
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= 100_000_000


def keys_of(content: Any) -> str:
    """Short description of the content of a file, for messages: its type, or its number of entries and first keys."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = ", ".join(repr(key) for key in list(content)[:6])
    return f"{len(content)} entries ({shown}{', ...' if len(content) > 6 else ''})" if content else "nothing"
