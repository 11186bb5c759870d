"""Exact nearest neighbours by cosine, in blocks: memory is N x k and one block of scores, never N x N.

Shapes: N images, D feature width, k neighbours, b rows and c columns of one block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray
Neighbours = tuple[Array, Array]


def unit_rows(features: Tensor | Array, name: str = "features") -> Tensor:
    """`features` as float32 (N, D) with rows of length one, on their device; all-zero rows stay zero.

    Raises:
        ValueError: not two-dimensional, empty, or a row that is not finite (the row is named).
    """
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be (images, width), both at least 1: got shape {tuple(tensor.shape)}")
    tensor = tensor.float()
    bad = (~torch.isfinite(tensor).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{name} must be finite: row {int(bad[0])} holds NaN or infinity ({len(bad)} such rows of {len(tensor)}); "
            "look for a diverged model or a broken image"
        )
    return F.normalize(tensor, dim=1)


@torch.no_grad()
def top_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest per row, largest first, equal scores by rising column: (values (b, k), columns int64 (b, k)).

    `torch.topk` alone picks any of several equal scores, which would make results depend on the device.
    """
    columns = scores.shape[1]
    k = min(k, columns)
    values, indices = scores.topk(min(k + 1, columns), dim=1)
    if k < columns:
        tied = (values[:, k] == values[:, k - 1]).nonzero().flatten()
        values, indices = values[:, :k], indices[:, :k]
        if len(tied):  # more scores equal to the last one than there is room for: keep the first columns
            row_scores, last = scores[tied], values[tied, -1:]
            equal = row_scores == last
            above = row_scores > last
            room = k - above.sum(dim=1, keepdim=True)
            keep = above | (equal & (equal.cumsum(dim=1) <= room))
            indices[tied] = keep.nonzero()[:, 1].reshape(len(tied), k)
    indices = indices.sort(dim=1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


@torch.no_grad()
def knn(features: Tensor | Array, k: int, block: int = 1024, column_block: int = 65536) -> Neighbours:
    """The k nearest neighbours of every image by cosine, the image itself always first.

    Equal similarities are ordered by rising index. Runs on the features' device, with torch's threads.

    Args:
        features: float (N, D); rows are normalised here.
        k: neighbours including the image itself; N where there are fewer images.
        block, column_block: a block of scores is `block x column_block` float32 (256 MiB by default).

    Returns:
        indices int64 (N, min(k, N)) and similarities float32 of the same shape, in [-1, 1] up to rounding.

    Raises:
        ValueError: features that are not finite (the row is named), or k, block or column_block below 1.
    """
    for name, value in (("k", k), ("block", block), ("column_block", column_block)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")
    unit = unit_rows(features)
    num, k = len(unit), min(k, len(unit))
    indices = np.empty((num, k), np.int64)
    similarities = np.empty((num, k), np.float32)
    for start in range(0, num, block):
        rows = unit[start : start + block]
        own = torch.arange(start, start + len(rows), device=unit.device)
        best = torch.empty(len(rows), 0, device=unit.device)
        which = torch.empty(len(rows), 0, dtype=torch.int64, device=unit.device)
        for first in range(0, num, column_block):
            scores = rows @ unit[first : first + column_block].T
            here = ((own >= first) & (own < first + scores.shape[1])).nonzero().flatten()
            scores[here, own[here] - first] = torch.inf  # before all duplicates of itself
            values, columns = top_scores(scores, k)
            # Columns rise from block to block, so a stable sort keeps equal scores in order of index.
            best, order = torch.cat([best, values], 1).sort(dim=1, descending=True, stable=True)
            which = torch.cat([which, columns + first], 1).gather(1, order)
            best, which = best[:, :k], which[:, :k]
        best[:, 0] = (rows * rows).sum(dim=1)
        indices[start : start + len(rows)] = which.cpu().numpy()
        similarities[start : start + len(rows)] = best.cpu().numpy()
    return indices, similarities


def self_first(indices: Array, num_images: int) -> Array:
    """A neighbour table of any search, checked, with each image as its own first neighbour: int32 (N, k).

    An approximate search may miss the image itself or return fewer than k neighbours, marked -1; both are mended:
    the image moves to (or is put at) the front, the last entry is dropped for it, -1 stays at the end.

    Raises:
        ValueError: a table of another number of images, or an index outside -1..N-1.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or len(indices) != num_images or indices.shape[1] < 1:
        raise ValueError(f"the neighbour table must be ({num_images}, k): got shape {indices.shape}")
    if indices.min() < -1 or indices.max() >= num_images:
        raise ValueError(
            f"neighbours must be image numbers in [0, {num_images}) or -1: got {indices.min()} to {indices.max()}"
        )
    own = np.arange(num_images)
    if not (np.array_equal(indices[:, 0], own) and indices.min() >= 0):
        # Sort key 0: itself, 1: others in their order, 2: absent; a missing self takes a column of its own.
        wide = np.concatenate([own[:, None], indices], axis=1)
        key = np.where(wide < 0, 2, 1)
        key[:, 1:][indices == own[:, None]] = 3
        key[:, 0] = 0
        order = np.argsort(key, axis=1, kind="stable")[:, : indices.shape[1]]
        indices = np.take_along_axis(wide, order, axis=1)
    return np.ascontiguousarray(indices, dtype=np.int32)
