"""The chosen subset: the best-scored fraction of the images, or a published order read safely."""

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


def count_of(num_images: int, fraction: float) -> int:
    """Images in the top `fraction`: rounded to the nearest, halves up, at least one.

    The published subsets agree: 50 % of 4,180,243 are 2,090,122 and 60 % are 2,508,146.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1]: got {fraction}")
    return max(1, math.floor(num_images * fraction + 0.5))


def select_top(keys: Sequence[str], scores: Array | Sequence[float], fraction: float) -> Array:
    """Positions of the best-scored images, best first; equal scores by rising key. The order of input does not matter.

    Args:
        keys: unique strings (B,). scores: numbers (B,), higher is better. fraction: in (0, 1].

    Returns:
        int64 (`count_of(B, fraction)`,), positions in `keys`.

    Raises:
        ValueError: no images, different lengths, a repeated key, a NaN score (its key is named), a fraction out of
            range.
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
    # Only runs of equal scores that reach into the subset need their keys compared.
    for run in np.flatnonzero((ends - starts > 1) & (starts < count)):
        span = slice(starts[run], ends[run])
        order[span] = sorted(order[span], key=keys.__getitem__)
    return order[:count].astype(np.int64)


def load_published_list(source: bytes | str | Path) -> list[str]:
    """Image paths, best first, from a pickled list of strings such as the authors' (paths relative to `images/`).

    A pickle can run any code when it is loaded; this reader refuses every pickle that names a class or a function, so
    that lists of strings are all it can return.

    Args:
        source: the file's content, or its path.

    Raises:
        ValueError: not a pickle, not a list of strings, an empty list, or one that tries to load code.
        OSError: the path cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = "the list" if isinstance(source, bytes) else f"the list {source}"
    try:
        entries = _DataOnly(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise ValueError(f"{name} was refused: its pickle loads {error}, a list of paths needs no code") from None
    except Exception as error:  # the pickle machine raises nearly any exception on broken input
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
    """The pickle wants something imported."""


class _DataOnly(pickle.Unpickler):
    """Unpickles numbers, strings and containers; imports nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise _RefusedError(f"{module_name}.{global_name}")
