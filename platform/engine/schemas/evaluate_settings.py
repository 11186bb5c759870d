"""The settings of platform.evaluate."""

from dataclasses import dataclass, field
from typing import Any

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.schemas.retrieval_settings import EvaluateConfig, PoolConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import height_and_width_or_empty
from reidssl.models.given import LoadConfig


@dataclass(kw_only=True)
class EvaluateProgramConfig:
    """The models and test sets to evaluate."""

    checkpoints: list[InputPath] = field(default_factory=list)
    """Run folders or checkpoint files."""
    test_sets: list[InputPath] = field(default_factory=lambda: ["runs/demo/data/target"])
    """Shards with splits query and gallery."""
    image_size: list[int] = field(default_factory=list)
    """[height, width] of the images; position embeddings are resized to it. Empty: the size each model was trained with."""
    output: OutputPath = ""
    """Folder for evaluation.json (all results and rankings); empty: print only."""
    load: LoadConfig = field(default_factory=LoadConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        height_and_width_or_empty(image_size=self.image_size)

    @property
    def overrides(self) -> dict[str, Any]:
        """Overrides of the backbone configurations; {} when no image size is set."""
        return {"image_size": tuple(self.image_size)} if self.image_size else {}
