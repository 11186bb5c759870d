"""Exact search: against a full sort, with ties, blocks, duplicates and broken input."""

import numpy as np
import pytest
import torch

from reidssl.clustering.neighbors import (
    DEVICE_COLUMNS,
    _BestOnDevice,
    knn,
    nearest,
    nearest_among,
    self_first,
    top_scores,
    unit_rows,
)


def full_sort(features: np.ndarray, k: int) -> np.ndarray:
    """The image itself first, then by falling cosine, ties by rising index; plainly, on an N x N array."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit.T
    table = []
    for i, row in enumerate(similarities):
        others = sorted((j for j in range(len(row)) if j != i), key=lambda j: (-row[j], j))
        table.append([i, *others][:k])
    return np.asarray(table)


@pytest.mark.parametrize(("block", "column_block"), [(1024, 65536), (7, 65536), (1024, 13), (5, 9), (200, 1)])
def test_equal_to_a_full_sort_for_any_block(block, column_block):
    features = np.random.default_rng(0).normal(size=(83, 12)).astype(np.float32)
    for indices, similarities in (
        knn(features, 10, block),
        nearest(unit_rows(features), unit_rows(features), 10, np.arange(83), block, column_block)[:2],
    ):
        assert_nearest(features, indices, similarities)


def assert_nearest(features, indices, similarities):
    assert indices.dtype == np.int64 and similarities.dtype == np.float32
    np.testing.assert_array_equal(indices, full_sort(features.astype(np.float64), 10))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(similarities, np.einsum("nd,nkd->nk", unit, unit[indices]), atol=1e-6)


@pytest.mark.parametrize("column_block", [65536, 7])
@pytest.mark.parametrize("k", [1, 3, 8, 40])
def test_ties_by_rising_index(k, column_block):
    # One-hot rows: every cosine is exactly 0 or 1, so nearly everything is tied.
    features = np.eye(6, dtype=np.float32)[np.random.default_rng(1).integers(6, size=31)]
    unit = torch.from_numpy(features)
    np.testing.assert_array_equal(nearest(unit, unit, k, np.arange(31), 8, column_block).indices, full_sort(features, min(k, 31)))
    np.testing.assert_array_equal(knn(features, k, column_block)[0], full_sort(features, min(k, 31)))


def repeated(seed: int = 0) -> np.ndarray:
    """Fifty points, five times each and shuffled, so that most neighbors are tied."""
    random = np.random.default_rng(seed)
    return random.permutation(np.repeat(random.normal(size=(50, 24)), 5, axis=0)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 3, 7, 64, 2048])
def test_copies_are_tied_whatever_the_block(block):
    features = repeated()
    indices, similarities = knn(features, 12)
    for row in range(250):  # equal images have equal similarity and come in rising order
        for column in range(1, 11):
            if (features[indices[row, column]] == features[indices[row, column + 1]]).all():
                assert similarities[row, column] == similarities[row, column + 1]
                assert indices[row, column] < indices[row, column + 1]
    unit, own = unit_rows(features), np.arange(250)
    searches = [nearest(unit, unit, 12, own, *each)[:2] for each in ((block, 31), (31, block))]
    for found in (knn(features, 12, block), *searches):
        np.testing.assert_array_equal(found[0], indices)
        np.testing.assert_array_equal(found[1], similarities)
    alone = [nearest(unit[row : row + 1], unit, 12, own[row : row + 1]) for row in (0, 100, 249)]  # products of one row
    np.testing.assert_array_equal(np.concatenate([each.indices for each in alone]), indices[[0, 100, 249]])


def test_order_of_the_images_does_not_matter():
    features = np.random.default_rng(4).normal(size=(150, 16)).astype(np.float32)
    order = np.random.default_rng(5).permutation(150)
    indices, similarities = knn(features, 9)
    moved = knn(features[order], 9)
    np.testing.assert_array_equal(order[moved[0]], indices[order])
    np.testing.assert_array_equal(moved[1], similarities[order])
    copies = repeated()  # with ties other copies with the same similarity are found
    order = np.random.default_rng(6).permutation(250)
    np.testing.assert_array_equal(knn(copies[order], 9)[1], knn(copies, 9)[1][order])


@pytest.mark.parametrize("column_block", [DEVICE_COLUMNS, 64, 7])
def test_the_selection_of_an_accelerator_is_that_of_the_processor(column_block):
    unit = unit_rows(repeated(1))
    scores = unit[:40] @ unit.T
    expected = nearest(unit[:40], unit, 12)
    best = _BestOnDevice(unit[:40], 12)
    for first in range(0, 250, column_block):
        best.take(scores[:, first : first + column_block], first)
    values, columns = top_scores(scores, 12)
    assert torch.equal(best.indices, columns) and torch.equal(best.similarities, values)
    np.testing.assert_allclose(best.similarities.numpy(), expected.similarities, atol=1e-6)
    np.testing.assert_allclose(best.lowest.numpy(), expected.lowest, atol=1e-6)


@pytest.mark.parametrize("columns", [2048, 2099, 5000])
def test_the_best_of_many_scores_are_found_by_stretches(columns):
    """Many equal scores, of which those in the first columns are taken, also if they are the last of the best."""
    scores = torch.from_numpy(np.random.default_rng(8).integers(0, 400, (50, columns))).float()
    scores[0] = 1.0
    values, found = top_scores(scores, 7)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(scores.numpy(), expected, axis=1))


@pytest.mark.parametrize("length", [1e-40, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e38])
def test_rows_of_any_length_become_one_long(length):
    rows = torch.from_numpy(np.random.default_rng(7).uniform(-1, 1, size=(6, 9))).double()
    features = (rows * length).float()
    features[3], features[4] = rows[3], 0  # rows with other neighbors
    expected = rows / rows.norm(dim=1, keepdim=True)
    expected[4] = 0
    torch.testing.assert_close(unit_rows(features).double(), expected, atol=2e-4 if length == 1e-40 else 1e-6, rtol=0)


@pytest.mark.parametrize(("block", "num_threads"), [(2048, 1), (20, 3), (1, 2)])
def test_the_farthest_is_known_too(block, num_threads):
    unit = unit_rows(np.random.default_rng(5).normal(size=(67, 4)))
    expected = (unit @ unit.T).min(dim=1).values.numpy()
    np.testing.assert_allclose(nearest_among(unit, 3, block, num_threads).lowest, expected, atol=1e-6)
    found = nearest(unit[:9], unit, 3, None, block, block, num_threads)
    np.testing.assert_allclose(found.lowest, expected[:9], atol=1e-6)
    assert (found.indices[:, 0] == np.arange(9)).all()  # each image is its own nearest neighbor
    same = nearest_among(unit_rows(np.ones((5, 3))), 2)  # no image is farther than the image itself
    np.testing.assert_allclose(same.lowest, 1.0, atol=1e-6)
    alone = nearest_among(unit[:1], 4)
    assert alone.indices.tolist() == [[0]] and alone.lowest[0] == np.inf


def test_all_equal_rows_keep_themselves_first():
    indices, similarities = knn(np.ones((9, 4), np.float32), 3)
    assert indices[0].tolist() == [0, 1, 2] and indices[7].tolist() == [7, 0, 1]
    np.testing.assert_allclose(similarities, 1.0, atol=1e-6)


def test_torch_and_half_precision_input():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    np.testing.assert_array_equal(knn(features, 4)[0], knn(features.detach().numpy(), 4)[0])
    assert knn(features.bfloat16(), 4)[1].dtype == np.float32


def test_top_scores_with_infinities_and_ties():
    scores = torch.tensor([[1.0, -torch.inf, 1.0, 1.0, torch.inf], [0.0, 2.0, 0.0, 0.0, 0.0]])
    values, columns = top_scores(scores, 3)
    assert columns.tolist() == [[4, 0, 2], [1, 0, 2]]
    assert values.tolist() == [[torch.inf, 1.0, 1.0], [2.0, 0.0, 0.0]]


def test_broken_input_is_refused():
    features = np.ones((5, 3), np.float32)
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"row 3 holds NaN"):
        knn(features, 2)
    features[2, 0] = np.inf
    with pytest.raises(ValueError, match=r"row 2 .*2 such rows of 5"):
        unit_rows(features)
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        knn(np.ones(4), 2)
    with pytest.raises(ValueError, match="k must be at least 1: got 0"):
        knn(np.ones((4, 2)), 0)


def test_self_first_mends_an_approximate_table():
    table = np.asarray([[0, 2, 1], [2, 1, 0], [0, 1, 3], [3, -1, -1], [-1, -1, -1]])
    assert self_first(table, 5).tolist() == [[0, 2, 1], [1, 2, 0], [2, 0, 1], [3, -1, -1], [4, -1, -1]]
    exact = knn(np.random.default_rng(0).normal(size=(30, 4)), 6)[0]
    np.testing.assert_array_equal(self_first(exact, 30), exact)
    with pytest.raises(ValueError, match=r"must be \(4, k\)"):
        self_first(table, 4)
    with pytest.raises(ValueError, match="got -1 to 5"):
        self_first(np.full((5, 1), 5) - np.eye(5, 1, dtype=int) * 6, 5)
