"""Which clusters to trust: the self-paced criterion of SpCL (Ge et al., NeurIPS 2020, arXiv 2006.02713).

Both measures are taken for each image, as intersection over union of its cluster with its cluster in another clustering:
independence with that at a looser eps (+ gap), compactness with that at a tighter one (- gap). As in the released code, a
cluster is as independent as its most independent image (one border image that goes elsewhere does not condemn it), and an
image is kept if it is as compact as any of its cluster. Different here: the threshold of independence, see `reliable`.
"""

import numpy as np

from reidssl.clustering.infomap import renumbered
from reidssl.clustering.neighbors import Array


def overlap(labels: Array, others: Array) -> Array:
    """Intersection over union of each image's cluster in two clusterings: float64 (N,) in (0, 1]; an outlier is alone."""
    one, two = (np.where(each < 0, len(each) + np.arange(len(each)), each) for each in map(np.asarray, (labels, others)))
    pairs, inverse, shared = np.unique(np.stack([one, two], 1), axis=0, return_inverse=True, return_counts=True)
    sizes_one, sizes_two = (dict(zip(*np.unique(each, return_counts=True), strict=True)) for each in (one, two))
    union = np.asarray([sizes_one[a] + sizes_two[b] for a, b in pairs]) - shared
    return (shared / union)[inverse.reshape(-1)]


def reliable(labels: Array, looser: Array, tighter: Array, share: float = 0.9, min_samples: int = 2) -> Array:
    """`labels` without clusters and images that do not last: int64 (N,), renumbered, -1 where they are dropped.

    Args:
        labels, looser, tighter: int (N,), clusterings at eps, eps + gap and eps - gap, -1 for outliers.
        share: in (0, 1], of the clusters to be kept, the most independent ones (ties are kept too). The paper fixes the
            threshold in its first epoch at 0.9; here it follows the clusters of each epoch, and a resumed run needs no
            memory of it.
        min_samples: clusters of fewer images afterwards are dropped as well.

    Raises:
        ValueError: arrays of different length, or a share out of range.
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
