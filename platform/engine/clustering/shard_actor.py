"""The actor that holds a share of the features and answers for it: nearest images, and similarities of chosen pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from platform.engine.inference.features import Part, read_all
from platform.engine.runtime.device import use_threads
from reidssl.clustering.index import NeighborIndex
from reidssl.clustering.neighbors import Neighbors, nearest
from reidssl.clustering.pairs import pair_cosines
from reidssl.row_blocks import over_blocks


def _writable(array: np.ndarray) -> np.ndarray:
    """A copy of what lies in the object store, where arrays are read-only and torch warns of them."""
    return array if array.flags.writeable else array.copy()


class Shard:
    """Actor: one share of the features. It loads when it is first asked, so also after a restart."""

    def __init__(self, parts: Sequence[Part], search: str, effort: int, threads: int) -> None:
        use_threads(threads)
        self.parts, self.search, self.effort = parts, search, effort
        self._index: NeighborIndex | None = None

    def index(self) -> NeighborIndex:
        if self._index is None:
            self._index = NeighborIndex(read_all(self.parts), self.search, self.effort)
        return self._index

    def rows(self, places: np.ndarray) -> np.ndarray:
        """float32 (len(places), D), of length one; places: int, from 0 in this share."""
        return self.index().images[places].cpu().numpy()

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray) -> Neighbors:
        """Of this share, numbered from 0. queries: float32 (Q, D) of length one; own: the image that is the query, or -1."""
        return self.index().nearest(_writable(queries), k, own, unit=True)

    def nearest_exact(self, queries: np.ndarray, k: int, own: np.ndarray) -> Neighbors:
        """The same by comparing with all images, whatever the search."""
        images = self.index().images
        found = nearest(torch.from_numpy(_writable(queries)).to(images.device), images, k, own)
        return found.indices, found.similarities

    def propose(
        self, proposal: Callable[..., Neighbors], table: np.ndarray, start: int, stop: int, starts: np.ndarray
    ) -> list[tuple[np.ndarray, ...]]:
        """Pairs whose similarity is wanted: all of them, then for each share those with its images.

        proposal(table, start, stop) -> how many others each image of start..stop has (n,), and the others (P,).
        starts: int (shares,), the first image of each.
        """
        counts, others = proposal(table, start, stop)
        owners = np.searchsorted(starts, others, side="right") - 1
        rows = np.repeat(np.arange(stop - start, dtype=np.int32), counts)
        chosen = [owners == share for share in range(len(starts))]
        return [
            (counts, others, owners.astype(np.int16)),
            *((rows[mine], others[mine] - starts[share]) for share, mine in enumerate(chosen)),
        ]

    def cosines(self, queries: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """float32 (P,); pairs: rows of `queries` and images of this share."""
        images, (rows, others) = self.index().images.cpu().numpy(), pairs

        def work(first: int, last: int) -> np.ndarray:
            return pair_cosines(queries, images, rows[first:last], others[first:last])

        found = over_blocks(work, len(rows), 65536)
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def conclude(self, conclusion: Callable[..., Any], proposed: tuple[np.ndarray, ...], *answers: np.ndarray) -> Any:
        """conclusion(counts, others, cosines), the shares' answers brought into the order of the pairs."""
        counts, others, owners = proposed
        cosines = np.empty(len(others), np.float32)
        for share, answer in enumerate(answers):
            cosines[owners == share] = answer
        return conclusion(counts, others, cosines)
