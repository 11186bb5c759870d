"""InfoMap and k-means as alternatives to DBSCAN."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

import reidssl.clustering.cluster_config as settings
from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.infomap import infomap, renumbered
from reidssl.clustering.kmeans import kmeans
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels


def graph(pairs, num):
    rows, columns, values = (np.asarray(each) for each in zip(*pairs, strict=True))
    upper = sp.csr_matrix((values.astype(np.float32), (rows, columns)), shape=(num, num))
    return (upper + upper.T).tocsr()


def test_splits_what_one_link_holds_together():
    groups = [range(1, 6), range(6, 11)]
    pairs = [(a, b, 0.1) for group in groups for a in group for b in group if a < b]
    distances = graph([*pairs, (5, 6, 0.3), (11, 12, 0.2)], 14)
    labels = infomap(distances, 0.5, 3)
    assert labels.tolist() == [-1] + 5 * [0] + 5 * [1] + 3 * [-1]  # 11 and 12 are too few for a cluster, 0 and 13 are alone
    assert dbscan(distances, 0.5, 3).max() == 0  # DBSCAN joins the chain into one cluster
    assert infomap(distances, 0.05, 3).tolist() == [-1] * 14 and infomap(distances, 0.05, 1).tolist() == list(range(14))
    np.testing.assert_array_equal(infomap(distances, 0.5, 3), labels)
    order = np.random.default_rng(0).permutation(14)
    shuffled = infomap(distances[order][:, order], 0.5, 3)
    assert renumbered(shuffled[np.argsort(order)]).tolist() == labels.tolist()


def test_both_find_separated_identities():
    random = np.random.default_rng(0)
    identities = np.repeat(np.arange(10), 12)
    features = random.normal(size=(10, 32))[identities] + 0.05 * random.normal(size=(120, 32))
    found = pseudo_labels(features, ClusterConfig(k1=10, k2=3, algorithm="infomap"))
    np.testing.assert_array_equal(found.labels, identities)
    assert (found.num_clusters, found.num_outliers) == (10, 0) and set(found.seconds) == {"search", "jaccard", "infomap"}
    found = pseudo_labels(features, ClusterConfig(algorithm="kmeans", num_clusters=10))  # a local optimum
    assert adjusted_rand_score(identities, found.labels) > 0.75 and set(found.seconds) == {"kmeans"}
    assert (found.num_clusters, found.num_outliers) == (10, 0)


def test_kmeans_degenerate():
    assert kmeans(np.ones((7, 3)), 3).tolist() == [0] * 7  # empty clusters do not count
    assert kmeans(np.eye(4), 4).tolist() == [0, 1, 2, 3]
    assert kmeans(np.eye(4), 1).tolist() == [0] * 4
    with pytest.raises(ValueError, match="at most the number of images, 4: got 5"):
        kmeans(np.eye(4), 5)
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        kmeans(np.asarray([[1.0, 2], [np.nan, 1]]), 1)


def test_renumbered():
    assert renumbered(np.asarray([9, 2, -1, 9, 2, 5])).tolist() == [0, 1, -1, 0, 1, 2]
    assert renumbered(np.asarray([9, 2, -1, 9, 2, 5]), 2).tolist() == [0, 1, -1, 0, 1, -1]


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="num_clusters must be at least 1 with algorithm=kmeans: got 0"):
        ClusterConfig(algorithm="kmeans")
    with pytest.raises(ValueError, match="algorithm must be one of dbscan, infomap, kmeans: got 'agglomerative'"):
        ClusterConfig(algorithm="agglomerative")
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"infomap library is not installed: .* pip install 'reidssl\[infomap\]'"):
        ClusterConfig(algorithm="infomap")
    with pytest.raises(ValueError, match="where FAISS is not installed: got 'kmeans'"):
        ClusterConfig(algorithm="kmeans", num_clusters=3)


@pytest.mark.parametrize("order", ["import faiss, infomap", "import infomap, faiss"])
def test_it_lives_with_faiss_in_one_process(order):
    """SWIG wraps both libraries. Iterators of one were once mistaken for those of the other, which ended the process."""
    code = f"""{order}
import numpy as np
import scipy.sparse as sp
from reidssl.clustering.index import find_neighbors
from reidssl.clustering.infomap import infomap as labels_of
find_neighbors(np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32), 5, "ivf")
near = sp.block_diag([np.full((3, 3), 0.1), np.full((2, 2), 0.1)]).tocsr()
print(labels_of(near, 0.5, 1).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[0, 0, 0, 1, 1]", (done.returncode, done.stderr)
