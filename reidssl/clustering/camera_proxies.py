"""Camera-aware proxies (Wang et al., AAAI 2021, arXiv 2012.10674): one class for each camera of a cluster."""

import numpy as np

from reidssl.clustering.neighbors import Array


def camera_proxies(labels: Array, camids: Array) -> tuple[Array, Array]:
    """Split clusters by camera into proxies.

    Args:
        labels: int (N,), clusters 0..C-1, -1 for outliers.
        camids: int (N,), cameras. The images of a cluster with unknown camera (-1) form a proxy of their own.

    Returns:
        proxies int64 (N,), 0..P-1 ordered by (cluster, camera), -1 for outliers; and the cluster of each proxy, int64 (P,).

    Raises:
        ValueError: the arrays differ in length or are not one-dimensional.
    """
    labels, camids = np.asarray(labels), np.asarray(camids)
    if labels.shape != camids.shape or labels.ndim != 1:
        raise ValueError(f"labels and camids must be of the same images: got {labels.shape} and {camids.shape}")
    inside = labels >= 0
    proxies = np.full(len(labels), -1, np.int64)
    pairs, inverse = np.unique(np.stack([labels[inside], camids[inside]], 1), axis=0, return_inverse=True)
    proxies[inside] = inverse.reshape(-1)
    return proxies, pairs[:, 0].astype(np.int64)
