"""Ranking shared by Ray tasks: each task takes some of the queries and compares them with the gallery piece by piece.

Features are normalized once in this process and stored in the object store as plain arrays. Tasks of one machine read them
without a copy. A task holds one piece of the gallery at a time, so `gallery_block` determines its memory. With more than one
piece, it processes them in two passes.
"""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from platform.engine.errors import UserError, user_error_of
from platform.engine.runtime.device import use_threads
from platform.engine.runtime.growth import autoscales
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
    """The metrics of `reidssl.metrics.ranking.rank`, equal to it for any number of tasks. Other arguments and errors as there.

    Args:
        tasks: number of tasks that share the queries; they run in parallel as far as the CPUs of the cluster allow.
        cpus: CPUs of a task.

    Raises UserError if a single task needs more CPUs than a cluster that cannot grow has, or if a task fails for good.
    """
    import ray
    from ray.exceptions import RayError

    _check_resources(cpus)
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


def _check_resources(cpus: float) -> None:
    """Raise UserError if a task needs more CPUs than there are, unless an autoscaler adds nodes: then the tasks wait for them."""
    import ray

    there = ray.cluster_resources().get("CPU", 0)
    if cpus > there and not autoscales():
        raise UserError(
            f"a ranking task needs {cpus:g} CPU, this Ray has {there:g}: connect to a larger cluster, or rank in "
            "one process with evaluate.tasks=0"
        )


def _judge(
    queries: np.ndarray,
    pids: np.ndarray,
    camids: np.ndarray,
    pieces: list[Any],
    labels: tuple[np.ndarray, np.ndarray],
    block: int,
    threads: int,
) -> QueryResults:
    """Task that ranks some queries (q, D). pieces: references to the pieces of the gallery. All features have unit length."""
    use_threads(threads)
    return judge_pieces(
        _tensor(queries), pids, camids, [partial(_fetch, piece) for piece in pieces], *labels, block, num_threads=threads
    )


def _fetch(piece: Any) -> Tensor:
    import ray

    return _tensor(ray.get(piece))


def _tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor without a copy; the tasks only read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of the read-only arrays of the object store
        return torch.from_numpy(array)


def _explained(error: Exception) -> Exception:
    """The error of a task with its own message, without the remote stack trace."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError):
        return ValueError(str(cause).splitlines()[0])
    known = user_error_of(error)
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return known or UserError(f"a ranking task failed: {lines[-1].strip()}")
