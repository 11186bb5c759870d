"""Results of single queries (average precision and others), from which `RankingMetrics` are computed.

The gallery may be given in pieces. The rank of a true match is the number of images in front of it, which is a sum over the
pieces. A first pass collects the scores of the true matches, and a second pass counts. Memory is a block of queries x the largest
piece, plus 20 bytes per true match. With a single piece, one pass is enough.

Shapes: Q queries, G gallery images, D feature width, M true matches of all queries, q queries of one block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reidssl.clustering.neighbors import Array
from reidssl.clustering.products import products, products_buffer
from reidssl.metrics.inputs import labels_of, unit_pair
from reidssl.metrics.rank_counts import count_piece, count_rows, gather_matches, in_rank_order, judge
from reidssl.row_blocks import over_blocks

ScoreBlocks = Iterable[tuple[int, Tensor]]
"""(first query, float32 scores (q, G), higher is nearer) of consecutive query blocks."""
Piece = Callable[[], Tensor]
"""Function that returns features of consecutive gallery images, float32 (c, D) of length one; called once or twice."""


class QueryResults(NamedTuple):
    """Results of each of Q queries. Queries can be divided among processes and their results concatenated."""

    average_precision: Array
    """float64 (Q,), NaN for queries without a true match."""
    penalty: Array
    """float64 (Q,), number of true matches / rank of the last of them; NaN for queries without a true match."""
    first: Array
    """int64 (Q,), number of images in front of the first true match; 0 for queries without a true match."""


def cosine_blocks(query_features: Tensor | Array, gallery_features: Tensor | Array, block: int) -> Iterator[tuple[int, Tensor]]:
    """Cosine similarities of consecutive query blocks and the whole gallery. Each block is overwritten by the next one.

    Arguments are checked when the function is called, not at the first block.
    """
    _check_block(block)
    return product_blocks(*unit_pair(query_features, gallery_features), block)


@torch.no_grad()
def product_blocks(queries: Tensor, gallery: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
    """As `cosine_blocks`, for rows that already have length one."""
    buffer = products_buffer(queries, min(block, len(queries)), len(gallery))
    for start in range(0, len(queries), block):
        yield start, products(queries[start : start + block], gallery, buffer)


def pieces_of(gallery: Tensor, size: int) -> list[Piece]:
    """Divide a gallery (G, D) into pieces of at most `size` images. Raises ValueError if size is below 1."""
    if size < 1:
        raise ValueError(f"gallery_block must be at least 1 image: got {size}")
    return [partial(gallery.__getitem__, slice(first, first + size)) for first in range(0, len(gallery), size)]


def judge_queries(
    blocks: ScoreBlocks,
    query_pids: Array,
    query_camids: Array,
    gallery_pids: Array,
    gallery_camids: Array,
    left_out: Array | None = None,
    num_threads: int | None = None,
) -> QueryResults:
    """Results of all queries from scores of any kind. Arguments and errors as in `reidssl.metrics.ranking.rank_blocks`."""
    labels = _Labels(query_pids, query_camids, gallery_pids, gallery_camids, left_out)
    found = labels.nothing_yet()
    for start, host in _checked(blocks, labels, len(labels.g_pids)):
        here = slice(start, start + len(host))
        work = partial(count_rows, host, labels.q_pids[here], *labels.of(here), *(each[here] for each in found))
        _refuse_broken(start, over_blocks(work, len(host), 16, num_threads))
    return found


def judge_pieces(
    queries: Tensor,
    query_pids: Array,
    query_camids: Array,
    pieces: Sequence[Piece],
    gallery_pids: Array,
    gallery_camids: Array,
    block: int = 128,
    left_out: Array | None = None,
    num_threads: int | None = None,
) -> QueryResults:
    """Results of all queries from features. They do not depend on how the gallery is divided.

    Args:
        queries: float32 (Q, D), rows of length one.
        pieces: the pieces of the gallery in order.
        block: number of queries processed at a time.
        Other arguments and errors as in `reidssl.metrics.ranking.rank_blocks`.
    """
    _check_block(block)
    if len(pieces) == 1:
        blocks = product_blocks(queries, pieces[0](), block)
        return judge_queries(blocks, query_pids, query_camids, gallery_pids, gallery_camids, left_out, num_threads)
    labels = _Labels(query_pids, query_camids, gallery_pids, gallery_camids, left_out)
    pointers, places = labels.matches()
    scores, ahead = np.empty(len(places), np.float32), np.zeros(len(places), np.int64)
    for first, start, host in _scores_of(queries, pieces, labels, block):
        work = partial(gather_matches, host, first, pointers[start:], places, scores)
        over_blocks(work, len(host), 16, num_threads)
    for begin, end in pairwise(pointers):
        order = in_rank_order(scores[begin:end], places[begin:end])
        scores[begin:end], places[begin:end] = scores[begin:end][order], places[begin:end][order]
    for first, start, host in _scores_of(queries, pieces, labels, block):
        rest = labels.of(slice(start, start + len(host)))
        work = partial(count_piece, host, *rest, first, pointers[start:], places, scores, ahead)
        _refuse_broken(start, over_blocks(work, len(host), 16, num_threads))
    found = labels.nothing_yet()
    for q in np.flatnonzero(np.diff(pointers)):
        judge(ahead[pointers[q] : pointers[q + 1]], q, *found)
    return found


class _Labels:
    """Labels of queries and gallery, prepared for the counting passes (see `count_rows` for the arrays)."""

    def __init__(self, q_pids: Array, q_camids: Array, g_pids: Array, g_camids: Array, left_out: Array | None) -> None:
        self.q_pids, self.q_camids = labels_of("query", q_pids, q_camids)
        self.g_pids, self.g_camids = labels_of("gallery", g_pids, g_camids)
        self.own = np.full(len(q_pids), -1, np.int64) if left_out is None else np.asarray(left_out, np.int64)
        self.by_pid = np.argsort(self.g_pids, kind="stable")
        ordered = self.g_pids[self.by_pid]
        self.begin, self.end = (np.searchsorted(ordered, self.q_pids, side) for side in ("left", "right"))
        self.nobody = np.flatnonzero(self.g_pids == -1)

    def of(self, here: slice) -> tuple[Array, ...]:
        """The arguments of the counting passes for a slice of the queries."""
        return (self.q_camids[here], self.g_camids, self.by_pid, self.begin[here], self.end[here], self.nobody, self.own[here])

    def nothing_yet(self) -> QueryResults:
        num = len(self.q_pids)
        return QueryResults(np.full(num, np.nan), np.full(num, np.nan), np.zeros(num, np.int64))

    def matches(self) -> tuple[Array, Array]:
        """(pointers, places), int64 (Q + 1,) and (M,): query q has matches places[pointers[q] : pointers[q + 1]], ascending."""
        found = []
        for q, (pid, camid) in enumerate(zip(self.q_pids, self.q_camids, strict=True)):
            places = self.by_pid[self.begin[q] : self.end[q]] if pid != -1 else self.by_pid[:0]
            junk = (places == self.own[q]) | ((self.g_camids[places] == camid) & (camid != -1))
            found.append(places[~junk])
        return np.concatenate([[0], np.cumsum([len(each) for each in found])]), np.concatenate(found)


def _scores_of(queries: Tensor, pieces: Sequence[Piece], labels: _Labels, block: int) -> Iterator[tuple[int, int, Array]]:
    """(first image, first query, scores (q, c)) for every piece of the gallery and every block of queries."""
    first = 0
    for piece in pieces:
        images = piece()
        for start, host in _checked(product_blocks(queries, images, block), labels, len(images)):
            yield first, start, host
        first += len(images)
    if first != len(labels.g_pids):
        raise ValueError(
            f"features and labels must be of the same images: got {first} gallery features and {len(labels.g_pids)} labels"
        )


def _checked(blocks: ScoreBlocks, labels: _Labels, num_columns: int) -> Iterator[tuple[int, Array]]:
    """The blocks as NumPy arrays. Raises ValueError unless they cover all queries in order and have `num_columns` columns."""
    done, num = 0, len(labels.q_pids)
    for start, scores in blocks:
        host = np.ascontiguousarray(scores.float().cpu().numpy())
        if start != done or start + len(host) > num or host.shape[1] != num_columns:
            raise ValueError(
                f"features and labels must be of the same images: got scores {host.shape} from query {start} for "
                f"{num} query and {len(labels.g_pids)} gallery labels"
            )
        done += len(host)
        yield start, host
    if done != num:
        raise ValueError(f"features and labels must be of the same images: got {done} query rows, {num} labels")


def _refuse_broken(start: int, rows: list[int]) -> None:
    broken = [row for row in rows if row >= 0]
    if broken:
        raise ValueError(f"scores must be numbers: query {start + broken[0]} has NaN among its scores")


def _check_block(block: int) -> None:
    if block < 1:
        raise ValueError(f"block must be at least 1 query: got {block}")
