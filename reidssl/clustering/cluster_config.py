"""Settings of clustering, importable without torch."""

from dataclasses import dataclass
from importlib.util import find_spec

from reidssl.checks import at_least, one_of, within

ALGORITHMS = ("dbscan", "infomap", "kmeans")
SEARCHES = ("exact", "ivf", "hnsw")


@dataclass(kw_only=True)
class ClusterConfig:
    """Settings of the clustering of images."""

    algorithm: str = "dbscan"
    """dbscan, infomap (both use the Jaccard distance) or kmeans (uses the features; needs num_clusters)."""
    k1: int = 30
    """Number of neighbors, including the image itself, for the k-reciprocal sets of the Jaccard distance."""
    k2: int = 6
    """Number of neighbors, including the image itself, averaged by query expansion; at most k1."""
    eps: float = 0.6
    """Largest Jaccard distance between neighbors in a cluster, in (0, 1); 0.6 for Market-1501, 0.7 for MSMT17."""
    eps_end: float = 0.0
    """eps in the last epoch; eps changes linearly from epoch to epoch. 0: eps is constant."""
    min_samples: int = 4
    """dbscan: number of neighbors, including the image itself, that make an image a core point. infomap: smallest cluster."""
    num_clusters: int = 0
    """Number of clusters of kmeans."""
    reliability_gap: float = 0.0
    """Keep only clusters and images that are stable if eps is changed by plus and minus this gap (SpCL: 0.02). 0: keep all."""
    reliable_share: float = 0.9
    """Share of the clusters, the most independent ones, that the reliability criterion keeps, in (0, 1]."""
    search: str = "exact"
    """Neighbor search: exact, or approximate with FAISS (ivf or hnsw), for hundreds of thousands of images."""
    search_effort: int = 0
    """ivf: number of groups that an image visits; hnsw: number of candidates kept. More is more accurate. 0: a default."""

    def __post_init__(self) -> None:
        one_of(ALGORITHMS, algorithm=self.algorithm)
        at_least(1, k1=self.k1, min_samples=self.min_samples)
        at_least(0, num_clusters=self.num_clusters)
        within("(0, 1)", eps=self.eps)
        within("(0, 1]", reliable_share=self.reliable_share)
        if not 1 <= self.k2 <= self.k1:
            raise ValueError(f"k2 must be in [1, k1 = {self.k1}]: got {self.k2}")
        if not 0.0 <= self.eps_end < 1.0:
            raise ValueError(f"eps_end must be 0 (eps throughout) or in (0, 1): got {self.eps_end}")
        gap, ends = self.reliability_gap, (self.eps, self.eps_end or self.eps)
        if gap < 0 or (gap and not (min(ends) - gap > 0 and max(ends) + gap < 1)):
            raise ValueError(f"reliability_gap must be 0 (off) or leave eps -/+ it in (0, 1): got {gap} with eps {self.eps}")
        check_search(self.search, self.search_effort)
        if self.algorithm == "infomap":
            check_infomap()
        if self.algorithm == "kmeans":
            check_kmeans(self.num_clusters)
            if gap:
                raise ValueError("reliability_gap must be 0 with algorithm=kmeans, which has no eps")

    def eps_at(self, progress: float) -> float:
        """eps at the completed fraction `progress`, in [0, 1], of the epochs."""
        return self.eps + ((self.eps_end or self.eps) - self.eps) * progress


def check_search(search: str, effort: int) -> None:
    """Raise ValueError if the search is unknown, FAISS is needed and not installed, or the effort is negative."""
    one_of(SEARCHES, search=search)
    if search != "exact" and find_spec("faiss") is None:
        raise ValueError(
            f"search must be exact where FAISS is not installed: got '{search}'; pip install 'reidssl[cpu]' or 'reidssl[gpu]'"
        )
    at_least(0, "(chosen from the number of images)", search_effort=effort)


def check_infomap() -> None:
    """Raise ValueError if the infomap library is not installed."""
    if find_spec("infomap") is None:
        raise ValueError(
            "algorithm must be dbscan or kmeans where the infomap library is not installed: got 'infomap'; "
            "pip install 'reidssl[infomap]'"
        )


def check_kmeans(num_clusters: int) -> None:
    """Raise ValueError if FAISS is not installed or num_clusters is below 1."""
    if find_spec("faiss") is None:
        raise ValueError(
            "algorithm must be dbscan or infomap where FAISS is not installed: got 'kmeans'; "
            "pip install 'reidssl[cpu]' or 'reidssl[gpu]'"
        )
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1 with algorithm=kmeans: got {num_clusters}")
