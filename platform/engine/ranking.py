"""Ranking shared among Ray tasks: each takes some of the queries, the gallery travels to each node once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from platform.engine.errors import UserError
from reidssl.metrics.ranking import QueryResults, RankingMetrics, cosine_blocks, judge_queries, summarise


def rank_shared(query_features: Tensor, query_pids: np.ndarray, query_camids: np.ndarray, gallery_features: Tensor,
                gallery_pids: np.ndarray, gallery_camids: np.ndarray, *, tasks: int, cpus: float = 1.0,
                block: int = 128) -> RankingMetrics:
    """As `reidssl.metrics.ranking.rank`, and equal to it whatever the number of tasks; arguments and errors as there.

    tasks: parts that the queries are cut into, computed side by side as far as `cpus` for each allow. Raises UserError if a
    single task needs more CPUs than the cluster has.
    """
    import ray

    there = ray.cluster_resources().get("CPU", 0)
    if cpus > there:
        raise UserError(f"a ranking task needs {cpus:g} CPU, this Ray has {there:g}: connect to a larger cluster, or rank in "
                        "one process with evaluate.tasks=0")
    gallery = ray.put((gallery_features.cpu(), np.asarray(gallery_pids), np.asarray(gallery_camids)))
    remote: Any = ray.remote(num_cpus=cpus)(_judge)
    parts = [rows for rows in np.array_split(np.arange(len(query_pids)), tasks) if len(rows)]
    found = ray.get([remote.remote(query_features[rows[0] : rows[-1] + 1].cpu(), query_pids[rows], query_camids[rows], gallery,
                                   block, max(1, int(cpus))) for rows in parts])
    together = QueryResults(*(np.concatenate(values) for values in zip(*found, strict=True)))
    return summarise(together, query_pids, gallery_pids)


def _judge(features: Tensor, pids: np.ndarray, camids: np.ndarray, gallery: tuple[Tensor, np.ndarray, np.ndarray], block: int,
           threads: int) -> QueryResults:
    torch.set_num_threads(threads)
    gallery_features, gallery_pids, gallery_camids = gallery
    blocks = cosine_blocks(features, gallery_features, block)
    return judge_queries(blocks, pids, camids, gallery_pids, gallery_camids, num_threads=threads)
