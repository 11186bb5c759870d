"""Settings of what compares features: judging, and the actors that share a neighbor search."""

from dataclasses import dataclass

from reidssl.checks import at_least, positive, within
from reidssl.choices import GALLERY_BLOCK
from reidssl.clustering.cluster_config import ClusterConfig


@dataclass(kw_only=True)
class EvaluateConfig:
    """How retrieval is judged."""

    reranking: bool = False
    """Also report k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)."""
    expansion: int = 0
    """Gallery images by which each query is expanded before ranking (alpha-QE); 0: none, as published results have it."""
    expansion_alpha: float = 3.0
    """Power of the cosine by which those images are weighted."""
    roc: bool = False
    """Also report verification: true positive rates at false positive rates 1e-4, 1e-3 and 1e-2."""
    cameras: bool = False
    """Also report the mAP from each camera to each other camera."""
    per_query: bool = False
    """Also keep the average precision of every query."""
    block: int = 128
    """Queries compared at a time: memory is block x gallery_block x 4 bytes (re-ranking: block x gallery)."""
    gallery_block: int = GALLERY_BLOCK
    """Gallery images compared at a time; a larger gallery is run through twice."""
    tasks: int = 0
    """Ray tasks that share the queries of mAP and CMC, for large galleries (platform.evaluate); 0: this process ranks."""

    def __post_init__(self) -> None:
        at_least(0, expansion=self.expansion, expansion_alpha=self.expansion_alpha, tasks=self.tasks)
        at_least(1, "query", block=self.block)
        at_least(1, "image", gallery_block=self.gallery_block)


@dataclass(kw_only=True)
class NeighborActorsConfig:
    """Actors that share the neighbor search, and tasks after it that share the Jaccard distance."""

    actors: int = 0
    """Actors, each with its share of the features; 0: no actors, the process that clusters searches by itself."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor or task, and its threads."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor; for exact search by torch, else by the GPU build of FAISS."""
    block: int = 8192
    """Images whose neighbors are looked for at a time, and images of a task."""

    def __post_init__(self) -> None:
        at_least(0, actors=self.actors, gpus_per_actor=self.gpus_per_actor)
        at_least(1, block=self.block)
        positive(cpus_per_actor=self.cpus_per_actor)

    @property
    def threads(self) -> int:
        """Of an actor or task."""
        return max(1, int(self.cpus_per_actor))


def check_shared(cluster: ClusterConfig, config: NeighborActorsConfig) -> None:
    """ValueError for an algorithm that cannot be shared out."""
    if config.actors and cluster.algorithm == "kmeans":
        raise ValueError(
            f"neighbors.actors must be 0 with cluster.algorithm=kmeans, which runs in one process: got {config.actors}"
        )


@dataclass(kw_only=True)
class PoolConfig:
    """The actors that hold the models."""

    actors: int = 2
    """Most actors; the pool grows to it while there is work."""
    batch: int = 256
    """Images in one forward pass."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor; fractions share one."""
    max_corrupt_share: float = 0.01
    """Largest share of the images that may be undecodable: those are left out and listed; above it (and above one) it stops."""

    def __post_init__(self) -> None:
        at_least(1, actors=self.actors, batch=self.batch)
        at_least(0, cpus_per_actor=self.cpus_per_actor, gpus_per_actor=self.gpus_per_actor)
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)
