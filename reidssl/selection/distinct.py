"""Near duplicates: of images that look alike to a model, only the best is kept."""

import numpy as np
from scipy.sparse import coo_array

Array = np.ndarray


def without_duplicates(order: Array, near: Array, similarities: Array, similarity: float) -> Array:
    """Which images are kept if a better image removes its near duplicates.

    The images are visited best first. An image is kept unless it is a near duplicate of a kept one. Two images are near
    duplicates if one of them has the other among its neighbors with at least this similarity. So a chain of similar images, such
    as a track of a video, is thinned and not reduced to one image. An image removes only its neighbors and the images that it is
    a neighbor of.

    Args:
        order: int (N,), all images, best first.
        near: int (N, k + 1), neighbors of each image, the image itself first; -1: absent.
        similarities: float (N, k + 1), cosines of the neighbors.
        similarity: smallest cosine of near duplicates, in (0, 1].

    Returns:
        bool (N,).

    Raises:
        ValueError: shapes do not fit or the similarity is out of range.
    """
    if near.shape != similarities.shape or len(near) != len(order):
        raise ValueError(f"order, near and similarities must be of the same images: got {len(order)}, {near.shape}, "
                         f"{similarities.shape}")  # fmt: skip
    if not 0.0 < similarity <= 1.0:
        raise ValueError(f"similarity must be in (0, 1]: got {similarity}")
    rows, columns = np.nonzero((similarities >= similarity) & (near >= 0))
    others = near[rows, columns]
    rows, others = rows[rows != others], others[rows != others]
    pairs = coo_array((np.ones(len(rows), bool), (rows, others)), shape=(len(near), len(near))).tocsr()
    pairs = (pairs + pairs.T).tocsr()
    kept, gone = np.ones(len(near), bool), np.zeros(len(near), bool)
    for image in order[np.diff(pairs.indptr)[order] > 0]:
        if gone[image]:
            kept[image] = False
        else:
            gone[pairs.indices[pairs.indptr[image] : pairs.indptr[image + 1]]] = True
    return kept
