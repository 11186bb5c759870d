"""Several training sets as one: their identities and cameras are kept apart."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from platform.engine.data.image_set import ImageSet
from platform.engine.storage.location import Location


class Images(Protocol):
    """Interface of a training set: an ImageSet, or several joined ones."""

    location: Location
    keys: list[str]
    pids: np.ndarray
    camids: np.ndarray
    problems: list[str]
    resize: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Tensor:
        """Decoded images uint8 (B, 3, H, W). indices: int (B,)."""

    def cameras(self, indices: np.ndarray) -> Tensor | None:
        """Rows int64 (B,) of the camera embeddings; None for a model without them."""


class JoinedImages:
    """The images of several ImageSets, one after the other, with the interface of one that training needs.

    keys begin with the number of the set, so that equal names stay different images; identities and cameras are numbered anew,
    from the first set on. An unknown identity or camera (-1) stays unknown. All sets must have the same image size.
    """

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        self.parts = list(parts)
        self.location, self.image_size, self.resize = parts[0].location, parts[0].image_size, parts[0].resize
        self.keys = [f"{number}:{key}" if number else key for number, part in enumerate(parts) for key in part.keys]
        self.pids = shifted([part.pids for part in parts])
        self.camids = shifted([part.camids for part in parts])
        self.problems = [problem for part in parts for problem in part.problems]
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: np.ndarray) -> Tensor:
        """Decoded images uint8 (B, 3, H, W), on the CPU. indices: int (B,)."""
        found = torch.empty((len(indices), 3, *self.image_size), dtype=torch.uint8)
        owners = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owners):
            rows = np.flatnonzero(owners == number)
            start = self._ends[number] - len(self.parts[number])
            found[torch.from_numpy(rows)] = self.parts[number].batch(indices[rows] - start)
        return found

    def cameras(self, indices: np.ndarray) -> Tensor | None:
        """None: joined sets are for models without camera embeddings."""
        return None


def shifted(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The numbers of all parts, int64, so that no number occurs in two parts. -1 stays -1."""
    found, start = [], 0
    for numbers in parts:
        found.append(np.where(numbers >= 0, numbers + start, numbers))
        start += max(int(numbers.max(initial=-1)) + 1, 0)
    return np.concatenate(found).astype(np.int64)
