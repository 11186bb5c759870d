"""Exact nearest neighbors by cosine similarity, in blocks. Memory is N x k plus one block of scores, never N x N.

Shapes: N images, D feature width, k neighbors, b rows and c columns of one block.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.clustering.products import MULTIPLE, products, products_buffer
from reidssl.clustering.top_k import STRETCH, select_columns, select_rows
from reidssl.row_blocks import one_torch_thread_each, over_blocks, threads_of

Array = np.ndarray
Neighbors = tuple[Array, Array]
TILE = 1024
"""Number of images that a thread compares its rows with at a time, so that the scores stay in its cache."""
DEVICE_COLUMNS = 65536
"""Number of images compared at a time on an accelerator, where the overhead of calls dominates for small blocks."""


def unit_rows(features: Tensor | Array, name: str = "features") -> Tensor:
    """`features` as float32 (N, D) with rows of length one, on their device. Rows of zeros stay zero.

    The length of a row may be any float32 number, such as 1e-40 or 1e38. Rows of length one may change in their last bit.

    Raises:
        ValueError: features are not two-dimensional, are empty, or are not finite (the message names the row).
    """
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be (images, width), both at least 1: got shape {tuple(tensor.shape)}")
    tensor = tensor.float()
    lengths = torch.linalg.vector_norm(tensor, dim=1)
    # For other lengths, squares underflow or overflow in float32, so these rows are scaled first. NaN is also selected here.
    unusual = (~((lengths > 1e-15) & (lengths < 1e15))).nonzero().flatten()
    if not len(unusual):
        return F.normalize(tensor, dim=1)
    rows = tensor[unusual]
    bad = unusual[~torch.isfinite(rows).all(dim=1)]
    if len(bad):
        raise ValueError(
            f"{name} must be finite: row {int(bad[0])} holds NaN or infinity ({len(bad)} such rows of {len(tensor)}); "
            "look for a diverged model or a broken image"
        )
    largest = rows.abs().amax(dim=1, keepdim=True)
    unit = F.normalize(tensor, dim=1)
    unit[unusual] = F.normalize(torch.where(largest > 0, rows / largest, 0), dim=1)
    return unit


@torch.no_grad()
def top_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores per row, descending, equal scores by ascending column: (values (b, k), columns int64 (b, k)).

    `torch.topk` alone selects any of several equal scores, so results would depend on the device.
    """
    columns = scores.shape[1]
    k = min(k, columns)
    values, indices = _largest(scores, min(k + 1, columns))
    if k < columns:
        tied = (values[:, k] == values[:, k - 1]).nonzero().flatten()
        values, indices = values[:, :k], indices[:, :k]
        if len(tied):  # more scores equal the last one than fit: keep those in the first columns
            row_scores, last = scores[tied], values[tied, -1:]
            equal = row_scores == last
            above = row_scores > last
            room = k - above.sum(dim=1, keepdim=True)
            keep = above | (equal & (equal.cumsum(dim=1) <= room))
            indices[tied] = keep.nonzero()[:, 1].reshape(len(tied), k)
    indices = indices.sort(dim=1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k)` along the rows, by way of the largest score of each stretch of columns.

    The k largest scores lie in the k stretches with the largest maxima, so that most scores are read only once.
    """
    rows, columns = scores.shape
    whole = columns - columns % STRETCH
    if whole // STRETCH < 4 * k:
        return scores.topk(k, dim=1)
    stretches = scores[:, :whole].unflatten(1, (-1, STRETCH))
    chosen = stretches.amax(dim=2).topk(k, dim=1).indices
    places = (chosen[:, :, None] * STRETCH + torch.arange(STRETCH, device=scores.device)).flatten(1)
    places = torch.cat([places, torch.arange(whole, columns, device=scores.device).expand(rows, -1)], dim=1)
    values, found = scores.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, found)


class Nearest(NamedTuple):
    """Neighbors of Q queries in a set of N images."""

    indices: Array
    """int64 (Q, min(k, N)), nearest first, equal similarities by ascending index."""
    similarities: Array
    """float32 (Q, min(k, N)), cosines of the neighbors."""
    lowest: Array
    """float32 (Q,), cosine of the farthest image."""


def knn(features: Tensor | Array, k: int, block: int = 2048, num_threads: int | None = None) -> Neighbors:
    """The k nearest neighbors of every image by cosine similarity, the image itself always first.

    Equal similarities are in ascending order of the index. On the CPU, equal rows have equal similarities for any block size
    (see `products`). Runs on the features' device, with torch's threads.

    Args:
        features: float (N, D); rows are normalized here.
        k: number of neighbors including the image itself; N if there are fewer images.
        block: a block of scores is `block x block` float32 (16 MiB by default).
        num_threads: number of threads of the selection; None: torch's number.

    Returns:
        indices int64 (N, min(k, N)) and similarities float32 of the same shape, in [-1, 1] up to rounding.

    Raises:
        ValueError: features are not finite (the message names the row), or k or block are below 1.
    """
    found = nearest_among(unit_rows(features), k, block, num_threads)
    return found.indices, found.similarities


@torch.no_grad()
def nearest_among(unit: Tensor, k: int, block: int = 2048, num_threads: int | None = None) -> Nearest:
    """`nearest` within one set, with each image as its own first neighbor.

    On the CPU only half of the products are computed, since score (i, j) equals score (j, i).

    Args:
        unit: float32 (N, D), rows of length one.
        k, block, num_threads: as in `knn`.
    """
    num, own = len(unit), np.arange(len(unit))
    _at_least_one(k=k, block=block)
    if unit.device.type != "cpu":
        return nearest(unit, unit, k, own, block, DEVICE_COLUMNS, num_threads)
    found, itself, num_threads = _nothing_yet(num, min(k, num)), np.empty(num, np.float32), threads_of(num_threads)
    share = -(-min(block, num) // (MULTIPLE * num_threads)) * MULTIPLE  # number of rows of a block for one thread
    tile = min(share, TILE)
    buffers = [
        [products_buffer(unit, share, tile) for _ in range(0, min(block, num), tile)] for _ in range(0, min(block, num), share)
    ]

    def rows_of(start: int, first: int, low: int) -> list[Array]:
        """Compute the scores of some rows of a block, in tiles, and update the lists of these rows.

        A thread does both while a tile is in its cache. Returns the tiles.
        """
        here, tiles = slice(start + low, min(start + low + share, start + block, num)), []
        for left, buffer in zip(range(first, min(first + block, num), tile), buffers[low // share], strict=False):
            scores = products(unit[here], unit[left : min(left + tile, first + block)], buffer).numpy()
            same = np.arange(max(here.start, left), min(here.stop, left + scores.shape[1]))
            itself[same] = scores[same - here.start, same - left]
            scores[same - here.start, same - left] = np.inf  # places the image before all of its duplicates
            select_rows(scores, left, found.similarities[here], found.indices[here], found.lowest[here], 0, len(scores))
            tiles.append(scores)
        return tiles

    def columns_of(start: int, first: int, low: int, pieces: list[list[Array]]) -> None:
        """Update the lists of some columns of a block. Rows come in ascending order, which gives ties their order."""
        for number, tiles in enumerate(pieces):
            scores = tiles[low // tile]
            here = slice(first + low, first + low + scores.shape[1])
            select_columns(
                scores,
                start + number * share,
                found.similarities[here],
                found.indices[here],
                found.lowest[here],
                0,
                scores.shape[1],
            )

    with ThreadPoolExecutor(num_threads) as pool, one_torch_thread_each():
        for start in range(0, num, block):
            for first in range(start, num, block):
                pieces = list(pool.map(partial(rows_of, start, first), range(0, min(block, num - start), share)))
                if first > start:
                    columns = range(0, min(block, num - first), tile)
                    list(pool.map(partial(columns_of, start, first, pieces=pieces), columns))
    found.similarities[:, 0] = itself
    return found


@torch.no_grad()
def nearest(
    queries: Tensor,
    images: Tensor,
    k: int,
    own: Array | None = None,
    block: int = 1024,
    column_block: int | None = None,
    num_threads: int | None = None,
) -> Nearest:
    """The k nearest of `images` to every query, and the similarity of the farthest image. Other arguments as in `knn`.

    Args:
        queries, images: float32 (Q, D) and (N, D) on one device, rows of length one.
        own: int (Q,), index of the image that is the query itself, which is then placed first; -1: none. None: none for all.
        block: number of queries compared at a time.
        column_block: number of images compared at a time. None: 4096, on an accelerator 65,536.
    """
    if column_block is None:
        column_block = 4096 if queries.device.type == "cpu" else DEVICE_COLUMNS
    _at_least_one(k=k, block=block, column_block=column_block)
    k = min(k, len(images))
    selves = torch.full((len(queries),), -1) if own is None else torch.from_numpy(np.asarray(own, np.int64))
    selves = selves.to(queries.device)
    found = _nothing_yet(len(queries), k)
    buffer = products_buffer(queries, min(block, len(queries)), min(column_block, len(images)))
    for start in range(0, len(queries), block):
        rows, mine = queries[start : start + block], selves[start : start + block]
        part = Nearest(*(array[start : start + len(rows)] for array in found))
        best = _BestOnDevice(rows, k) if rows.device.type != "cpu" else None
        itself = torch.empty_like(rows[:, 0])
        for first in range(0, len(images), column_block):
            columns = images[first : first + column_block]
            scores = products(rows, columns, buffer)
            here = ((mine >= first) & (mine < first + len(columns))).nonzero().flatten()
            itself[here] = scores[here, mine[here] - first]
            scores[here, mine[here] - first] = torch.inf  # places the image before all of its duplicates
            if best is None:
                work = partial(select_rows, scores.numpy(), first, part.similarities, part.indices, part.lowest)
                over_blocks(work, len(rows), 64, num_threads)
            else:
                best.take(scores, first)
        if best is not None:
            for array, tensor in zip(part, (best.indices, best.similarities, best.lowest), strict=True):
                array[:] = tensor.cpu().numpy()
        known = (mine >= 0).nonzero().flatten()
        part.similarities[known.cpu().numpy(), 0] = itself[known].cpu().numpy()
    return found


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")


def _nothing_yet(num: int, k: int) -> Nearest:
    """Initial lists of `num` queries, which any score improves."""
    return Nearest(np.full((num, k), -1, np.int64), np.full((num, k), -np.inf, np.float32), np.full(num, np.inf, np.float32))


class _BestOnDevice:
    """Running selection of the k best scores on any device. Blocks must come in ascending order of the images."""

    def __init__(self, rows: Tensor, k: int) -> None:
        self.indices = torch.full((len(rows), k), -1, device=rows.device)
        self.similarities = rows.new_full((len(rows), k), -torch.inf)
        self.lowest = rows.new_full((len(rows),), torch.inf)

    def take(self, scores: Tensor, first: int) -> None:
        """Add a block of scores, float32 (b, c), of the images from `first` on."""
        k = self.indices.shape[1]
        values, columns = top_scores(scores, k)
        # Later blocks have larger image indices, so a stable sort keeps equal scores in order of the index.
        wide, order = torch.cat([self.similarities, values], dim=1).sort(dim=1, descending=True, stable=True)
        self.similarities = wide[:, :k]
        self.indices = torch.cat([self.indices, columns + first], dim=1).gather(1, order[:, :k])
        self.lowest = torch.minimum(self.lowest, scores.amin(dim=1))


def self_first(indices: Array, num_images: int) -> Array:
    """Check a table of neighbors and place each image first in its own row: int32 (N, k).

    An approximate search may miss the image itself or find fewer than k neighbors (-1: absent). The image is moved to or
    inserted at the front, which drops the last entry if it was missing. Absent entries are moved to the end.

    Raises:
        ValueError: the table is of another number of images, or an index is outside -1..N-1.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or len(indices) != num_images or indices.shape[1] < 1:
        raise ValueError(f"the neighbor table must be ({num_images}, k): got shape {indices.shape}")
    if indices.min() < -1 or indices.max() >= num_images:
        raise ValueError(f"neighbors must be image numbers in [0, {num_images}) or -1: got {indices.min()} to {indices.max()}")
    own = np.arange(num_images)
    if not (np.array_equal(indices[:, 0], own) and indices.min() >= 0):
        # Sort keys: 0 the image itself (in an additional column), 1 other images in their order, 2 absent, 3 repeated self.
        wide = np.concatenate([own[:, None], indices], axis=1)
        key = np.where(wide < 0, 2, 1)
        key[:, 1:][indices == own[:, None]] = 3
        key[:, 0] = 0
        order = np.argsort(key, axis=1, kind="stable")[:, : indices.shape[1]]
        indices = np.take_along_axis(wide, order, axis=1)
    return np.ascontiguousarray(indices, dtype=np.int32)
