"""Selection of reliable clusters: the criterion of SpCL (Ge et al., NeurIPS 2020, arXiv 2006.02713).

Two measures are computed for each image, as intersection over union of its cluster and its cluster in another clustering:
independence with a clustering at a looser eps (+ gap), compactness with one at a tighter eps (- gap). As in the released code,
the independence of a cluster is that of its most independent image, so that a single border image does not remove the cluster.
An image is kept if its compactness is the largest in its cluster. The threshold of independence differs, see `reliable`.
"""

import numpy as np

from reidssl.clustering.infomap import renumbered
from reidssl.clustering.neighbors import Array


def overlap(labels: Array, others: Array) -> Array:
    """Intersection over union of each image's clusters in two clusterings: float64 (N,) in (0, 1].

    Each outlier (-1) counts as a cluster of its own.
    """
    one, two = (np.where(each < 0, len(each) + np.arange(len(each)), each) for each in map(np.asarray, (labels, others)))
    pairs, inverse, shared = np.unique(np.stack([one, two], 1), axis=0, return_inverse=True, return_counts=True)
    sizes_one, sizes_two = (dict(zip(*np.unique(each, return_counts=True), strict=True)) for each in (one, two))
    union = np.asarray([sizes_one[a] + sizes_two[b] for a, b in pairs]) - shared
    return (shared / union)[inverse.reshape(-1)]


def reliable(labels: Array, looser: Array, tighter: Array, share: float = 0.9, min_samples: int = 2) -> Array:
    """`labels` without unreliable clusters and images: int64 (N,), renumbered, -1 for dropped images.

    Args:
        labels, looser, tighter: int (N,), clusterings at eps, eps + gap and eps - gap, -1 for outliers.
        share: fraction in (0, 1] of the clusters to keep, the most independent ones; ties are kept too. The paper fixes the
            threshold in the first epoch, at a share of 0.9. Here it is computed in each epoch, so that a resumed run needs no
            stored threshold.
        min_samples: clusters that are left with fewer images are dropped as well.

    Raises:
        ValueError: the arrays differ in length, or `share` is out of range.
    """
    labels, looser, tighter = (np.asarray(each) for each in (labels, looser, tighter))
    if not labels.shape == looser.shape == tighter.shape:
        raise ValueError(f"the clusterings must be of the same images: got {labels.shape}, {looser.shape} and {tighter.shape}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]: got {share}")
    num = int(labels.max(initial=-1)) + 1
    if num == 0:
        return labels.astype(np.int64)
    inside = labels >= 0
    independence, compactness = np.zeros(num), np.zeros(num)
    alone, together = overlap(labels, looser), overlap(labels, tighter)
    np.maximum.at(independence, labels[inside], alone[inside])
    np.maximum.at(compactness, labels[inside], together[inside])
    threshold = np.sort(independence)[::-1][max(0, round(share * num) - 1)]
    kept = inside.copy()
    kept[inside] = (independence[labels[inside]] >= threshold) & (together[inside] >= compactness[labels[inside]])
    return renumbered(np.where(kept, labels, -1), min_samples)
