"""Pseudo-labels (search, Jaccard distance, DBSCAN): this project against the published dense algorithm.

  python -m benchmarks.pseudo_labels          4,000 images
  python -m benchmarks.pseudo_labels --full   12,936 (Market-1501's training set) and 32,621 (MSMT17's)

384-dimensional random features, k1 30, k2 6, eps 0.6. The dense side needs 13 GB and minutes at 32,621.
"""

import numpy as np

from benchmarks.measure import Comparison
from benchmarks.people import unlabeled

TINY = {"300": dict(num=300, images_per_identity=17, num_cameras=6)}
QUICK = {"4,000": dict(num=4000, images_per_identity=17, num_cameras=6)}
FULL = {
    "12,936 (Market-1501 train)": dict(num=12936, images_per_identity=17, num_cameras=6),
    "32,621 (MSMT17 train)": dict(num=32621, images_per_identity=31, num_cameras=15),
}
K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
COMPARISON = Comparison(
    __spec__.name,
    "pseudo-labels of {} x 384",
    ("ours", "dense"),
    "dense, as published",
    {"tiny": TINY, "quick": QUICK, "full": FULL},
)


def ours(size):
    """This project's side."""
    from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels

    config = ClusterConfig(k1=K1, k2=K2, eps=EPS, min_samples=MIN_SAMPLES)
    pseudo_labels(unlabeled(2100, 10, 3)[0], config)  # more than one block of the search, so that all of it is compiled
    features = unlabeled(**size)[0]
    return lambda: pseudo_labels(features, config).labels, summary


def dense(size):
    """The other side: the published dense algorithm."""
    from benchmarks.dense import pseudo_labels

    pseudo_labels(unlabeled(200, 10, 3)[0], K1, K2, EPS, MIN_SAMPLES)
    features = unlabeled(**size)[0]
    return lambda: pseudo_labels(features, K1, K2, EPS, MIN_SAMPLES), summary


def summary(labels):
    """Numbers that differ if any label differs."""
    return {
        "clusters": int(labels.max()) + 1,
        "outliers": int((labels < 0).sum()),
        "label checksum": int((labels.astype(np.int64) * np.arange(1, len(labels) + 1)).sum()),
    }


if __name__ == "__main__":
    COMPARISON.main(__doc__)
