"""What is inside a model file: safetensors, or a torch file of plain tensors. No code stored in a file is ever run."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

Source = bytes | str | os.PathLike[str]

# Where training codes put the weights beside epochs, optimisers and options; the first one that is there is taken.
_WRAPPERS = ("teacher", "state_dict", "model", "student")
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
_DAMAGES = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError, OverflowError, struct.error)


def read_source(source: Source) -> tuple[bytes, str]:
    """A file's bytes, and a name for it in messages."""
    if isinstance(source, bytes):
        return source, "the checkpoint"
    return Path(source).read_bytes(), os.fspath(source)


def read_content(data: bytes, name: str) -> Any:
    """What a safetensors or torch file holds, on the CPU: usually tensors by name, perhaps inside other dicts.

    Raises ValueError saying what to do for a damaged file, for one that is no model at all, and for one that needs more than
    plain values, naming the class it asks for.
    """
    if _is_safetensors(data):
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, *_DAMAGES) as error:
            raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error
    if len(data) < 2 or not data.startswith(_TORCH_BEGINNINGS):
        raise ValueError(f"{name} is neither a safetensors nor a torch file{_what_instead(data)}")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGES as error:
        # "Unsupported global: GLOBAL some.module.Class was not ..." or "Unsupported class some.module.Class"
        wanted = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if wanted:
            raise ValueError(
                f"{name} holds an object of {wanted[1]} and is refused: unpickling anything but plain tensors can run "
                "code. Where you trust it, load it with the code that wrote it and save the weights alone: "
                "torch.save(checkpoint['state_dict'], 'weights.pth'), with the key under which they are"
            ) from error
        raise ValueError(
            f"{name} is neither a safetensors nor a torch file of plain tensors, or it is damaged "
            f"({type(error).__name__}): fetch it again"
        ) from error


def _what_instead(data: bytes) -> str:
    """What a file is that is no model, as far as its first bytes tell, and what to do."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer, a few lines in the place of the file: run git lfs pull, or download the file itself"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return " but a web page (HTML or XML), that around the download or its error message: fetch the file itself"
    if start.startswith(b"\x1f\x8b"):
        return " but gzip data: unpack it first"
    if not data.strip(b"\0"):
        return f" but {len(data)} zero bytes: a download that was not finished; fetch it again" if data else ": it is empty"
    return ": fetch it again, or name another file"


def read_header(data: bytes, name: str) -> dict[str, str]:
    """The metadata of a safetensors file; empty for a torch file. ValueError if it is damaged."""
    if not _is_safetensors(data):
        return {}
    try:
        return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch it again") from error


def find_state_dict(content: Any, name: str, weights: str = "") -> dict[str, Tensor]:
    """The tensors by name inside `content`, unwrapped.

    Args:
        weights: the key to take where a training checkpoint holds several models, e.g. "student"; empty: the first of
            teacher, state_dict, model, student that is there.

    Raises ValueError, with the keys that were found, where there is no such thing.
    """
    if weights and not (isinstance(content, dict) and isinstance(content.get(weights), Mapping)):
        raise ValueError(f"{name} has no weights under {weights!r}; it holds {_keys(content)}")
    while isinstance(content, dict):
        wanted = [key for key in ((weights,) if weights else _WRAPPERS) if isinstance(content.get(key), Mapping)]
        if not wanted:
            break
        content, weights = content[wanted[0]], ""
    if not content or not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(
            f"{name} holds no state dict: expected names with tensors, plain or under {', '.join(_WRAPPERS)}; "
            f"found {_keys(content)}"
        )
    return dict(content)


def _is_safetensors(data: bytes) -> bool:
    """After 8 bytes of header length comes JSON; the format allows 100 MB of it, and text read as a length gives more."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= 100_000_000


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = ", ".join(repr(key) for key in list(content)[:6])
    return f"{len(content)} entries ({shown}{', ...' if len(content) > 6 else ''})" if content else "nothing"
