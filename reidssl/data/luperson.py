"""LUPerson (Fu et al., CVPR 2021): unlabelled person crops, as an `images/` tree or LMDB with a list of keys.

The count is the paper's: 4,180,243 images. LUPerson is for research only and must not be redistributed.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reidssl.data.records import LayoutError, Record, describe, is_image, warn_unless_published

PUBLISHED = {"train": 4_180_243}


def index(
    files: Sequence[str], read_text: Callable[[str], str] | None = None, expect_published: bool = True
) -> list[Record]:
    """Every image below `images/`, unlabelled, sorted by path.

    `files` are paths relative to the root, which may be the folder above. `read_text` is not needed
    here; all layouts take it. Raises `LayoutError` when there is no image below an `images/` folder.
    """
    found = [path for path in files if "/images/" in f"/{path}" and is_image(path)]
    if not found:
        raise LayoutError(
            f"not a LUPerson layout: no images below images/. Found {describe(files)}. Give the folder "
            "that holds images/, the LMDB folder, or use the plain folder layout."
        )
    return records_of_keys(found, expect_published)


def records_of_keys(keys: Iterable[str], expect_published: bool = True) -> list[Record]:
    """Unlabelled records of the given keys, sorted. Raises `LayoutError` for a key that is there twice."""
    records = sorted(Record(key, -1, -1, "train") for key in keys)
    for first, second in itertools.pairwise(records):
        if first.key == second.key:
            raise LayoutError(f"the key {first.key!r} is there more than once")
    if expect_published:
        warn_unless_published("LUPerson", records, PUBLISHED)
    return records


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles lists, strings and numbers; refuses everything that could run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise LayoutError(
            f"the key list asks for {module_name}.{global_name}: only a plain list of strings is read, since "
            "anything else could run code. Get the list from its publisher again."
        )


def read_keys(data: bytes) -> list[str]:
    """The keys in a pickled list of str (or UTF-8 bytes), as `keys.pkl` beside the LMDB holds them.

    Raises `LayoutError` for anything else; nothing in the file is ever executed.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except LayoutError:
        raise
    except (
        Exception
    ) as error:  # a damaged pickle fails in many ways: EOFError, KeyError, UnicodeDecodeError, ...
        raise LayoutError(f"the key list is not a readable pickle ({len(data):,} bytes): {error}") from error
    if not isinstance(value, list | tuple):
        raise LayoutError(f"the key list must hold a list of strings: got {type(value).__name__}")
    keys = []
    for position, key in enumerate(value):
        try:
            text = key.decode() if isinstance(key, bytes) else key
        except UnicodeDecodeError as error:
            raise LayoutError(f"key {position} is not UTF-8: {key[:40]!r}") from error
        if not isinstance(text, str):
            raise LayoutError(f"key {position} must be a string: got {type(key).__name__}")
        keys.append(text)
    return keys
