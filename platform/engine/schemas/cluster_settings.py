"""The settings of platform.cluster."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.schemas.retrieval_settings import NeighborActorsConfig, PoolConfig, check_shared
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.clustering.cluster_config import ClusterConfig
from reidssl.models.given import LoadConfig


@dataclass(kw_only=True)
class ClusterProgramConfig:
    """The images to cluster, the model that computes the features, and the clustering."""

    output: OutputPath = "runs/clusters"
    """Folder of the features and labels."""
    checkpoint: InputPath = ""
    """Run folder or checkpoint file of the model that computes the features."""
    data: InputPath = "runs/demo/data/pretrain"
    """Shards to cluster; all splits are used."""
    load: LoadConfig = field(default_factory=LoadConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    neighbors: NeighborActorsConfig = field(default_factory=NeighborActorsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_shared(self.cluster, self.neighbors)
        if self.cluster.eps_end:
            raise ValueError(
                f"cluster.eps_end is for fine-tuning, whose eps may change over its epochs: got {self.cluster.eps_end:g}; set "
                "cluster.eps"
            )
