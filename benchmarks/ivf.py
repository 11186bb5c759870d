"""All nearest neighbors of a large set by an inverted file: this project's grouped search against FAISS's own IndexIVFFlat.

  python -m benchmarks.ivf          20,000 images
  python -m benchmarks.ivf --full   100,000 images

Both sides train the same number of centers on the same features, visit the same number of groups per query and use all cores.
The recall is that of 30 neighbors on a sample.
"""

import numpy as np

from benchmarks.measure import Comparison
from benchmarks.people import unlabeled

TINY = {"3,000 x 384": 3000}
QUICK = {"20,000 x 384": 20_000}
FULL = {"100,000 x 384": 100_000}
K = 30
COMPARISON = Comparison(
    __spec__.name, "30 neighbors of {}", ("ours", "faiss"), "faiss.IndexIVFFlat", {"tiny": TINY, "quick": QUICK, "full": FULL}
)


def ours(num):
    """This project's side."""
    from reidssl.clustering.index import find_neighbors, recall

    find_neighbors(_features(2000), K, "ivf")
    features = _features(num)
    return lambda: find_neighbors(features, K, "ivf"), lambda found: {"recall": round(recall(features, found), 3)}


def faiss(num):
    """The other side: FAISS's index with its own search."""
    import faiss
    import torch

    from reidssl.clustering.index import recall
    from reidssl.clustering.ivf import num_groups

    features = _features(num)
    groups = num_groups(num)
    faiss.omp_set_num_threads(torch.get_num_threads())

    def work():
        rows = features / np.linalg.norm(features, axis=1, keepdims=True)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], groups, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64  # as this project's side
        index.train(rows)
        index.add(rows)
        index.nprobe = max(8, groups // 32)
        similarities, indices = index.search(rows, K)
        return indices, similarities

    return work, lambda found: {"recall": round(recall(features, found), 3)}


def _features(num: int) -> np.ndarray:
    """float32 (num, 384): about 22 noisy images of each person."""
    return unlabeled(num, 22, 6)[0]


if __name__ == "__main__":
    COMPARISON.main(__doc__)
