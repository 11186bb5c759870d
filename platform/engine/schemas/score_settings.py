"""The settings of platform.score."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.schemas.retrieval_settings import NeighborActorsConfig, PoolConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, one_of
from reidssl.choices import MEASURES
from reidssl.clustering.cluster_config import check_search
from reidssl.models.given import LoadConfig


@dataclass(kw_only=True)
class ScoreConfig:
    """Everything a scoring run depends on."""

    output: OutputPath = "runs/scores"
    """Folder of the scores."""
    source_proxy: InputPath = ""
    """Source proxy: the run folder of a platform.pretrain run, or a checkpoint file."""
    target_proxy: InputPath = ""
    """Target proxy: the run folder of a platform.finetune run that started from the source proxy, or a checkpoint file."""
    measure: str = "cosine"
    """Similarity of the two proxies' features: cosine (taken to be the paper's), neighborhood, group_neighborhood, group_cka."""
    k: int = 20
    """Number of neighbors (neighborhood and group_neighborhood only)."""
    search: str = "exact"
    """Neighbor search (measure=neighborhood only): exact, ivf or hnsw."""
    group: int = 4096
    """Largest number of images that are compared with each other (group_neighborhood and group_cka only)."""
    seed: int = 0
    """Seed of the random groups (group_neighborhood and group_cka only)."""
    features: bool = False
    """Keep the features of both proxies below output. Another measure can then use them, and platform.select can find near
    duplicates."""
    features_from: InputPath = ""
    """Folder of finished scores with features=true: use its features instead of computing them. They must be of the same data and
    proxies. Proxies that are not named are those of the folder."""
    neighbors: NeighborActorsConfig = field(default_factory=lambda: NeighborActorsConfig(actors=2))
    """Actors that share the neighbor search."""
    data: InputPath = "runs/demo/data/pretrain"
    """Shards to score."""
    load: LoadConfig = field(default_factory=LoadConfig)
    """What the file of the source proxy does not say."""
    load_target: LoadConfig = field(default_factory=LoadConfig)
    """What the file of the target proxy does not say."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        one_of(MEASURES, measure=self.measure)
        at_least(3, group=self.group)
        at_least(0, seed=self.seed)
        at_least(1, k=self.k, **{"neighbors.actors": self.neighbors.actors})
        check_search(self.search, 0)
        if self.features and self.features_from:
            raise ValueError("features and features_from exclude each other: the features are kept in features_from already")
