"""Choice of a subset: the fraction of the images with the best scores, or a published list, which is read safely."""

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


def count_of(num_images: int, fraction: float) -> int:
    """Number of images in the top `fraction`, in (0, 1]: rounded to the nearest integer, halves up, at least one.

    This agrees with the published subsets: 50 % of 4,180,243 are 2,090,122 and 60 % are 2,508,146.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1]: got {fraction}")
    return max(1, math.floor(num_images * fraction + 0.5))


def select_top(keys: Sequence[str], scores: Array | Sequence[float], fraction: float) -> Array:
    """Positions of the images with the best scores, best first. Equal scores are in ascending order of their keys.

    The selected keys do not depend on the order of the input.

    Args:
        keys: unique strings (B,).
        scores: numbers (B,), higher is better.
        fraction: fraction of the images to select, in (0, 1].

    Returns:
        int64 (`count_of(B, fraction)`,), positions in `keys`.

    Raises:
        ValueError: there are no images, lengths differ, a key is repeated, a score is NaN (the message names its key), or the
            fraction is out of range.
    """
    values = np.asarray(scores, np.float64)
    if values.shape != (len(keys),) or not len(keys):
        raise ValueError(f"keys and scores must be of one length, at least 1: got {len(keys)} and {values.shape}")
    count = count_of(len(keys), fraction)
    missing = np.isnan(values)
    if missing.any():
        first = keys[int(missing.argmax())]
        raise ValueError(
            f"{int(missing.sum())} of {len(keys)} scores are NaN, the first that of '{first}': the proxies gave no finite "
            "feature; remove these images or score them again"
        )
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        double = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"keys must be unique: '{double}' occurs more than once")
    order = np.argsort(-values, kind="stable")
    sorted_values = values[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]]))
    ends = np.append(starts[1:], len(order))
    # Keys must be compared only in runs of equal scores that begin inside the subset.
    for run in np.flatnonzero((ends - starts > 1) & (starts < count)):
        span = slice(starts[run], ends[run])
        order[span] = sorted(order[span], key=keys.__getitem__)
    return order[:count].astype(np.int64)


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
