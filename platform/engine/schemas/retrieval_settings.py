"""Settings of evaluation, of the actors that share a neighbor search, and of the actors that compute features."""

from dataclasses import dataclass, replace

from reidssl.checks import at_least, one_of, positive, within
from reidssl.choices import COMPILE_CHOICES, GALLERY_BLOCK, PRECISIONS, RESIZES
from reidssl.clustering.cluster_config import ClusterConfig


@dataclass(kw_only=True)
class EvaluateConfig:
    """How retrieval is evaluated."""

    reranking: bool = False
    """Also report results with k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)."""
    flip: bool = False
    """Average the features of each image and its mirror image before they are normalized, as in the Bag of Tricks baseline
    (arXiv 1903.07071); takes twice the time. Published results of this method are without."""
    resize: str = "bicubic"
    """How test images are scaled: bicubic, as training images are and as the released USL does, or bilinear, as the released
    supervised code does."""
    expansion: int = 0
    """Gallery images used to expand each query before ranking (alpha-QE); 0: no expansion, as in published results."""
    expansion_alpha: float = 3.0
    """Exponent of the cosine that weights these images."""
    roc: bool = False
    """Also report verification: true positive rates at false positive rates 1e-4, 1e-3 and 1e-2."""
    cameras: bool = False
    """Also report the mAP for each pair of query camera and gallery camera."""
    per_query: bool = False
    """Also store the average precision of every query."""
    block: int = 128
    """Queries compared at a time. The memory is block * gallery_block * 4 bytes (re-ranking: block * gallery size * 4)."""
    gallery_block: int = GALLERY_BLOCK
    """Gallery images compared at a time. A larger gallery is processed in two passes."""
    tasks: int = 0
    """Ray tasks that share the queries of mAP and CMC, for large galleries (platform.evaluate only); 0: no tasks, rank in this
    process."""

    def __post_init__(self) -> None:
        one_of(RESIZES, resize=self.resize)
        at_least(0, expansion=self.expansion, expansion_alpha=self.expansion_alpha, tasks=self.tasks)
        at_least(1, "query", block=self.block)
        at_least(1, "image", gallery_block=self.gallery_block)

    @property
    def fast(self) -> "EvaluateConfig":
        """The same figures of mAP and CMC, without the further results: for evaluations during training."""
        return replace(self, reranking=False, roc=False, cameras=False, per_query=False)


@dataclass(kw_only=True)
class NeighborActorsConfig:
    """Actors that share the neighbor search, and tasks that share the Jaccard distance after it."""

    actors: int = 0
    """Number of actors; each holds an equal share of the features. 0: no actors, search in the process that clusters."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor or task, and the number of its threads."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor. Exact search runs in torch on them, other searches need the GPU build of FAISS."""
    block: int = 8192
    """Images searched at a time, and images in a task."""

    def __post_init__(self) -> None:
        at_least(0, actors=self.actors, gpus_per_actor=self.gpus_per_actor)
        at_least(1, block=self.block)
        positive(cpus_per_actor=self.cpus_per_actor)

    @property
    def threads(self) -> int:
        """Threads of an actor or task, at least 1."""
        return max(1, int(self.cpus_per_actor))


def check_shared(cluster: ClusterConfig, config: NeighborActorsConfig) -> None:
    """Check that the clustering algorithm can use the actors. Raises ValueError for kmeans with actors."""
    if config.actors and cluster.algorithm == "kmeans":
        raise ValueError(
            f"neighbors.actors must be 0 with cluster.algorithm=kmeans, which runs in one process: got {config.actors}"
        )


WORTH_COMPILING = 100_000


@dataclass(kw_only=True)
class PoolConfig:
    """Actors that hold the models and compute features."""

    actors: int = 2
    """Largest number of actors. The pool grows to it while there is work, and a cluster that autoscales grows with it."""
    min_actors: int = 1
    """Number of actors that the pool starts with and never goes below; at most `actors`."""
    batch: int = 256
    """Largest number of images in one forward pass. A pass never spans two row groups of a shard."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor; with a fraction, several actors share a GPU."""
    precision: str = "auto"
    """fp32, bf16 (autocast; the features stay fp32), or auto: bf16 on GPUs, fp32 on CPUs."""
    compile: str = "auto"
    """Compile the model: on, off, or auto: on GPUs with Triton, for at least 100,000 images, which repay the minute it takes."""
    max_corrupt_share: float = 0.01
    """Largest share of undecodable images. Such images are skipped and listed; the program stops if there are more than this
    share and more than one."""

    def __post_init__(self) -> None:
        at_least(1, actors=self.actors, min_actors=self.min_actors, batch=self.batch)
        if self.min_actors > self.actors:
            raise ValueError(f"min_actors must be between 1 and actors ({self.actors}): got {self.min_actors}")
        at_least(0, cpus_per_actor=self.cpus_per_actor, gpus_per_actor=self.gpus_per_actor)
        one_of(PRECISIONS, precision=self.precision)
        one_of(COMPILE_CHOICES, compile=self.compile)
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)

    def compiling(self, num_images: int) -> str:
        """The choice to compile (auto, on or off) for a number of images."""
        return "off" if self.compile == "auto" and num_images < WORTH_COMPILING else self.compile
