"""Ranking shared among Ray tasks: each takes some of the queries and runs through the gallery piece by piece.

Features are normalized once, here, and lie in the object store as plain arrays, which tasks of one machine read in place. A
task holds one piece of the gallery at a time, so its memory is set by `gallery_block`; with more than one piece it
runs through them twice.
"""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from platform.engine.errors import UserError, user_error_of
from platform.engine.runtime.device import use_threads
from reidssl.choices import GALLERY_BLOCK
from reidssl.metrics.average_precision import QueryResults, judge_pieces, pieces_of
from reidssl.metrics.inputs import check_fit, labels_of, unit_pair
from reidssl.metrics.ranking import RankingMetrics, summarize


def rank_shared(
    query_features: Tensor,
    query_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_features: Tensor,
    gallery_pids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    tasks: int,
    cpus: float = 1.0,
    block: int = 128,
    gallery_block: int = GALLERY_BLOCK,
) -> RankingMetrics:
    """As `reidssl.metrics.ranking.rank`, and equal to it whatever the number of tasks; arguments and errors as there.

    Verification, camera pairs and re-ranking are not shared.

    tasks: parts that the queries are cut into, computed side by side as far as `cpus` for each allow. Raises UserError if a
    single task needs more CPUs than the cluster has, or a task is lost for good.
    """
    import ray
    from ray.exceptions import RayError

    there = ray.cluster_resources().get("CPU", 0)
    if cpus > there:
        raise UserError(
            f"a ranking task needs {cpus:g} CPU, this Ray has {there:g}: connect to a larger cluster, or rank in "
            "one process with evaluate.tasks=0"
        )
    query_pids, query_camids = labels_of("query", query_pids, query_camids)
    gallery_pids, gallery_camids = labels_of("gallery", gallery_pids, gallery_camids)
    check_fit("query", query_features, query_pids)
    check_fit("gallery", gallery_features, gallery_pids)
    queries, gallery = unit_pair(query_features, gallery_features)
    pieces = [ray.put(piece().cpu().numpy()) for piece in pieces_of(gallery, gallery_block)]
    labels = ray.put((gallery_pids, gallery_camids))
    remote: Any = ray.remote(num_cpus=cpus)(_judge)
    threads = max(1, int(cpus))
    parts = [slice(rows[0], rows[-1] + 1) for rows in np.array_split(np.arange(len(query_pids)), tasks) if len(rows)]
    found = [
        remote.remote(queries[rows].cpu().numpy(), query_pids[rows], query_camids[rows], pieces, labels, block, threads)
        for rows in parts
    ]
    try:
        results = ray.get(found)
    except RayError as error:
        raise _explained(error) from None
    together = QueryResults(*(np.concatenate(values) for values in zip(*results, strict=True)))
    return summarize(together, query_pids, gallery_pids)


def _judge(
    queries: np.ndarray,
    pids: np.ndarray,
    camids: np.ndarray,
    pieces: list[Any],
    labels: tuple[np.ndarray, np.ndarray],
    block: int,
    threads: int,
) -> QueryResults:
    """Task: some queries (q, D) with references to the pieces of the gallery, all of length one."""
    use_threads(threads)
    return judge_pieces(
        _tensor(queries), pids, camids, [partial(_fetch, piece) for piece in pieces], *labels, block, num_threads=threads
    )


def _fetch(piece: Any) -> Tensor:
    import ray

    return _tensor(ray.get(piece))


def _tensor(array: np.ndarray) -> Tensor:
    """The array itself, not a copy: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what lies in the object store is read-only
        return torch.from_numpy(array)


def _explained(error: Exception) -> Exception:
    """The task's own words without the remote stack trace around them."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError):
        return ValueError(str(cause).splitlines()[0])
    known = user_error_of(error)
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return known or UserError(f"a ranking task failed: {lines[-1].strip()}")
