"""Infomap clustering of the sparse Jaccard graph (Rosvall and Bergstrom, PNAS 2008), with the authors' library `infomap`.

Unlike DBSCAN, it separates groups that are connected by a few links only, so that a chain of similar images does not become one
identity.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scipy.sparse as sp

from reidssl.clustering.cluster_config import check_infomap
from reidssl.clustering.neighbors import Array


def infomap(distances: sp.csr_matrix, eps: float, min_samples: int, seed: int = 0) -> Array:
    """Cluster labels int64 (N,), 0..C-1 in order of the first image, or -1 for outliers.

    Args:
        distances: float CSR (N, N), symmetric, in [0, 1]. A pair without an entry is further apart than eps.
        eps: pairs up to this distance are linked, with weight 1 - distance; in [0, 1).
        min_samples: minimum size of a cluster; images of smaller groups are outliers.
        seed: seed of the library's search.

    Raises:
        ValueError: an argument is out of range, or the library is missing.
    """
    check_infomap()
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"eps must be in [0, 1): got {eps}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1: got {min_samples}")
    from infomap import Infomap

    pairs = sp.triu(distances, k=1).tocoo()
    near = pairs.data <= np.float32(eps)
    links = np.stack([pairs.row[near], pairs.col[near], 1 - pairs.data[near]], axis=1).astype(np.float64)
    num = distances.shape[0]
    groups = np.arange(num) + num + 1  # initially each image is a group of its own
    if len(links):
        search = Infomap(silent=True, two_level=True, seed=seed + 1, num_trials=1)
        search.add_links(links)
        search.run()
        images, modules = _modules(search)  # 1, 2, ... at most N
        groups[images] = modules
    return renumbered(groups, min_samples)


def _modules(search: Any) -> tuple[Array, Array]:
    """(images, modules), each int64 (M,), by way of a file.

    In a process that has imported FAISS, too, the library's iterators are taken for FAISS's, whose wrappers come from the same
    generator, and the process ends.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "modules.clu"
        search.write_clu(str(file))
        rows = np.loadtxt(file, dtype=np.int64, comments="#", usecols=(0, 1), ndmin=2)
    return rows[:, 0], rows[:, 1]


def renumbered(groups: Array, min_samples: int = 1) -> Array:
    """Groups of any numbers -> 0..C-1 in order of their first image; -1 stays, groups below `min_samples` become -1."""
    groups = np.asarray(groups)
    names, first, inverse, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    kept = (counts >= min_samples) & (names >= 0)
    order = np.argsort(np.where(kept, first, len(groups)), kind="stable")
    numbers = np.full(len(names), -1, np.int64)
    numbers[order[: kept.sum()]] = np.arange(kept.sum())
    return numbers[inverse]
