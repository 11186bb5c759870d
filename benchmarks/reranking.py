"""k-reciprocal re-ranking with metrics: this project against the published dense algorithm.

  python -m benchmarks.reranking          500 x 3,000
  python -m benchmarks.reranking --full   Market-1501's size (3,368 x 15,913); the dense side takes minutes and 8 GB

Both sides compute mAP and CMC from the result; the dense side does so with the sort and the compiled loop of benchmarks/dense.py.
It keeps its weights in float16, as published, which changes mAP by about 2e-5.
"""

from benchmarks.measure import Comparison
from benchmarks.people import query_and_gallery
from benchmarks.ranking import SMALL

TINY = {"40 x 200": SMALL}
QUICK = {"500 x 3,000": dict(num_query=500, num_gallery=3000, num_identities=150, num_cameras=6)}
FULL = {"3,368 x 15,913 (Market-1501)": dict(num_query=3368, num_gallery=15913, num_identities=751, num_cameras=6)}
COMPARISON = Comparison(
    __spec__.name, "re-ranking {} x 384", ("ours", "dense"), "dense, as published", {"tiny": TINY, "quick": QUICK, "full": FULL}
)


def ours(size):
    """This project's side."""
    from reidssl.metrics.reranking import rank_reranked

    rank_reranked(*query_and_gallery(**SMALL))
    arrays = query_and_gallery(**size)
    return lambda: rank_reranked(*arrays), lambda found: {"mAP": round(found.mAP, 4), "Rank-1": round(found.rank1, 4)}


def dense(size):
    """The other side: the published dense algorithm."""
    from benchmarks.dense import rerank, sorted_ranking

    def work(arrays):
        queries, q_pids, q_camids, gallery, g_pids, g_camids = arrays
        return sorted_ranking(rerank(queries, gallery), q_pids, g_pids, q_camids, g_camids)

    work(query_and_gallery(**SMALL))
    arrays = query_and_gallery(**size)
    return lambda: work(arrays), lambda found: {"mAP": round(found[1], 4), "Rank-1": round(found[0][0], 4)}


if __name__ == "__main__":
    COMPARISON.main(__doc__)
