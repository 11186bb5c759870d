"""The published form of a ranking: a pickled list of image paths relative to `images/`, best first; read safely, and written."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PUBLISHED_FOLDER = "images/"
"""Folder to which the paths in the authors' lists are relative."""


def published_list(keys: Sequence[str]) -> bytes:
    """The content of a file like the authors': `keys`, best first, without a leading "images/"."""
    return pickle.dumps([key.removeprefix(PUBLISHED_FOLDER) for key in keys])


def load_published_list(source: bytes | str | Path) -> list[str]:
    """Image paths, best first, from a pickled list of strings such as the authors' (paths relative to `images/`).

    A pickle can run any code when it is loaded. Therefore every pickle that refers to a class or a function is rejected.

    Args:
        source: content of the file, or its path.

    Raises:
        ValueError: the file is not a pickle of a list of strings, the list is empty, or the pickle tries to load code.
        OSError: the path cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = "the list" if isinstance(source, bytes) else f"the list {source}"
    try:
        entries = _DataOnly(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise ValueError(f"{name} was refused: its pickle loads {error}, a list of paths needs no code") from None
    except Exception as error:  # the unpickler raises nearly any exception on broken input
        raise ValueError(
            f"{name} is not a readable pickle ({type(error).__name__}: {error}); expected a pickled list of image paths"
        ) from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{name} must hold a non-empty list of image paths: got {type(entries).__name__}")
    wrong = next((place for place, entry in enumerate(entries) if type(entry) is not str), None)
    if wrong is not None:
        raise ValueError(f"{name} must hold strings only: entry {wrong} is {type(entries[wrong]).__name__}")
    return entries


class _RefusedError(Exception):
    """The pickle refers to a class or function, which is not allowed."""


class _DataOnly(pickle.Unpickler):
    """Unpickler for numbers, strings and containers, which never imports anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise _RefusedError(f"{module_name}.{global_name}")
