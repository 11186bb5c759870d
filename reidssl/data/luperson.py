"""LUPerson (Fu et al., CVPR 2021): unlabeled person crops, as an `images/` folder tree or as an LMDB with a list of keys.

The published count, from the paper, is 4,180,243 images. LUPerson is for research only and must not be redistributed.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reidssl.data.labels import shown
from reidssl.data.records import Aside, LayoutError, Record, describe, is_image, refuse_if_most, warn_of, warn_unless_published

PUBLISHED = {"train": 4_180_243}


def index(
    files: Sequence[str],
    read_text: Callable[[str], str] | None = None,
    expect_published: bool = True,
    aside: Aside | None = None,
) -> list[Record]:
    """All images below `images/`, unlabeled, sorted by path.

    Args:
        files: paths relative to the root, which may be any folder above `images/`.
        read_text, aside: not used here; part of the interface of all layouts.
        expect_published: give a `LayoutWarning` if the count differs from the published one.

    Raises `LayoutError` if there is no image below an `images/` folder.
    """
    found = [path for path in files if "/images/" in f"/{path}" and is_image(path)]
    if not found:
        raise LayoutError(
            f"not a LUPerson layout: no images below images/. Found {describe(files)}. Give the folder "
            "that holds images/, the LMDB folder, or use the plain folder layout."
        )
    return records_of_keys(found, expect_published)


def records_of_keys(keys: Iterable[str], expect_published: bool = True) -> list[Record]:
    """Unlabeled records of the given keys, sorted and without duplicates."""
    records = [Record(key, -1, -1, "train") for key in sorted(set(keys))]
    if expect_published:
        warn_unless_published("LUPerson", records, PUBLISHED)
    return records


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler for lists, strings and numbers only. Raises LayoutError for everything that could run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise LayoutError(
            f"the key list asks for {module_name}.{global_name}: only a plain list of strings is read, since "
            "anything else could run code. Get the list from its publisher again."
        )


def _has_bytes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def read_keys(data: bytes, aside: Aside | None = None) -> list[str]:
    """The keys in a pickled list of str (or bytes), the content of `keys.pkl` beside the LMDB, without duplicates.

    Bytes that are not UTF-8 become lone surrogates, as in `os.fsdecode`. Code in the file is never executed.

    Args:
        data: content of the file.
        aside: filled with the entries that are not valid keys, by position, and why. None: a `LayoutWarning` is given instead.

    Raises `LayoutError` if the file is not a readable pickle of a list, or if more than half of its entries are invalid.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="surrogateescape").load()
    except LayoutError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways: EOFError, KeyError, UnicodeDecodeError, ...
        raise LayoutError(f"the key list is not a readable pickle ({len(data):,} bytes): {error}") from error
    if not isinstance(value, list | tuple):
        raise LayoutError(f"the key list must hold a list of strings: got {type(value).__name__}")
    keys: dict[str, None] = {}
    left_out: Aside = {} if aside is None else aside
    unfit: list[str] = []
    for position, key in enumerate(value):
        text = key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
        if isinstance(text, str) and text and (text.isascii() or _has_bytes(text)):
            keys[text] = None
            continue
        unfit.append(f"keys.pkl, entry {position}")
        left_out[unfit[-1]] = f"no key: key {position} must be text that is not empty: got {shown(key)} ({type(key).__name__})"
    if unfit:
        refuse_if_most(len(unfit), len(value), left_out[unfit[0]].partition(": ")[2])
    if aside is None:
        warn_of(left_out, "the key list")
    return list(keys)
