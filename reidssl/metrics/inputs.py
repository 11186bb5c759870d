"""Validation of the arguments of all metrics."""

import numpy as np
from torch import Tensor

from reidssl.clustering.neighbors import Array, unit_rows


def labels_of(name: str, pids: Array, camids: Array) -> tuple[Array, Array]:
    """Identities and cameras as int64 arrays of equal length.

    name: "query" or "gallery", for messages. Raises ValueError for other shapes or dtypes, or empty arrays.
    """
    pids, camids = np.asarray(pids), np.asarray(camids)
    if pids.ndim != 1 or pids.shape != camids.shape or not len(pids):
        raise ValueError(f"{name} pids and camids must be of one length, at least 1: got {pids.shape} and {camids.shape}")
    if not (np.issubdtype(pids.dtype, np.integer) and np.issubdtype(camids.dtype, np.integer)):
        raise ValueError(f"{name} pids and camids must be integers: got {pids.dtype} and {camids.dtype}")
    return np.ascontiguousarray(pids, np.int64), np.ascontiguousarray(camids, np.int64)


def have_matches(pids: Array, camids: Array) -> Array:
    """bool (N,): whether an image has a true match among the other images, as `ranking.leave_one_out` counts them.

    pids, camids: int (N,). Identity -1 has no match; camera -1 is unknown and differs from every camera.
    """

    def occurrences(*labels: Array) -> Array:
        _, places, counts = np.unique(np.stack(labels), axis=1, return_inverse=True, return_counts=True)
        return np.asarray(counts[places.reshape(-1)])

    pids, camids = np.asarray(pids), np.asarray(camids)
    unmatched = np.where(camids == -1, 1, occurrences(pids, camids))  # the image itself, and those of its camera
    return np.asarray((pids != -1) & (occurrences(pids) > unmatched))


def unit_pair(query_features: Tensor | Array, gallery_features: Tensor | Array) -> tuple[Tensor, Tensor]:
    """Both features as float32 with rows of length one. Raises ValueError if they are not finite or differ in width."""
    queries, gallery = unit_rows(query_features, "query_features"), unit_rows(gallery_features, "gallery_features")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query and gallery features must have one width: got {queries.shape[1]} and {gallery.shape[1]}")
    return queries, gallery


def check_fit(name: str, features: Tensor | Array, labels: Tensor | Array) -> None:
    """Raise ValueError unless there are as many features as labels. name: "query" or "gallery", for the message."""
    if len(features) != len(labels):
        raise ValueError(
            f"features and labels must be of the same images: got {len(features)} {name} features and {len(labels)} labels"
        )
