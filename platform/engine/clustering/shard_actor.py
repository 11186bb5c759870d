"""The actor that holds a share of the features. It finds the nearest images in it and the similarities of chosen pairs."""

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
    """`array`, copied if it is read-only: torch warns of the read-only arrays of the object store."""
    return array if array.flags.writeable else array.copy()


class Shard:
    """Actor with one share of the features. It loads them at the first call, so it also works after a restart.

    search, effort: kind of the neighbor search, see reidssl.clustering.index.
    """

    def __init__(self, parts: Sequence[Part], search: str, effort: int, threads: int) -> None:
        use_threads(threads)
        self.parts, self.search, self.effort = parts, search, effort
        self._index: NeighborIndex | None = None
        self._host: np.ndarray | None = None

    def index(self) -> NeighborIndex:
        """The search index of the share, built at the first call."""
        if self._index is None:
            self._index = NeighborIndex(read_all(self.parts), self.search, self.effort)
        return self._index

    def host(self) -> np.ndarray:
        """The features of the share on the CPU, float32 of unit length. A GPU sends them once."""
        if self._host is None:
            self._host = self.index().images.cpu().numpy()
        return self._host

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Features float32 (len(places), D) of unit length. places: int, rows of this share from 0."""
        return self.index().images[places].cpu().numpy()

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray) -> Neighbors:
        """The k nearest images in this share, numbered from 0.

        queries: float32 (Q, D) of unit length; own: int (Q,), the image of this share that is the query, or -1.
        """
        return self.index().nearest(_writable(queries), k, own, unit=True)

    def nearest_exact(self, queries: np.ndarray, k: int, own: np.ndarray) -> Neighbors:
        """As `nearest`, but always by an exhaustive search."""
        images = self.index().images
        found = nearest(torch.from_numpy(_writable(queries)).to(images.device), images, k, own)
        return found.indices, found.similarities

    def propose(
        self, proposal: Callable[..., Neighbors], table: np.ndarray, start: int, stop: int, starts: np.ndarray
    ) -> list[tuple[np.ndarray, ...]]:
        """The pairs of the images start..stop whose similarities are needed: first all pairs, then those of each share.

        Args:
            proposal: (table, start, stop) -> number of pairs of each image (n,), and the other image of each pair (P,).
            starts: int (shares,), first image of each share.

        Returns (counts (n,), others (P,), share of each other (P,)), then for each share (rows from `start`, rows of the share).
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
        """Cosines float32 (P,) of pairs. pairs: (rows of `queries`, images of this share), int (P,) each."""
        images, (rows, others) = self.host(), pairs

        def work(first: int, last: int) -> np.ndarray:
            return pair_cosines(queries, images, rows[first:last], others[first:last])

        found = over_blocks(work, len(rows), 65536)
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def conclude(self, conclusion: Callable[..., Any], proposed: tuple[np.ndarray, ...], *answers: np.ndarray) -> Any:
        """conclusion(counts, others, cosines), with the answers of the shares arranged in the order of the pairs."""
        counts, others, owners = proposed
        cosines = np.empty(len(others), np.float32)
        for share, answer in enumerate(answers):
            cosines[owners == share] = answer
        return conclusion(counts, others, cosines)
