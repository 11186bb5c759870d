"""The settings of platform.pipeline."""

from dataclasses import dataclass, field, replace

from platform.engine.config.paths import OutputPath
from platform.engine.ingest.sources import RawConfig
from platform.engine.schemas.finetune_settings import SETTINGS
from platform.engine.schemas.phases_settings import SupervisedConfig, UnsupervisedConfig
from platform.engine.schemas.pretrain_settings import DataConfig, PretrainConfig
from platform.engine.schemas.retrieval_settings import EvaluateConfig, PoolConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from platform.engine.train.scaling import ScalingConfig
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.checks import at_least, one_of, within

CONTROLS = ("random", "inverse")
SELECTED, RANDOM_PART, INVERSE_PART = "selected", "random_part", "inverse_part"


@dataclass(kw_only=True)
class FinetuneStageConfig:
    """Settings of all fine-tuning stages."""

    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    augment: ReidAugmentConfig = field(default_factory=ReidAugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    """Seed of batches, augmentation, drop path and the initial values of new layers."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)


@dataclass(kw_only=True)
class CfsConfig:
    """How a subset of the pre-training images is selected by Catastrophic Forgetting Scores (CFS)."""

    proxy_samples: int = 0
    """Images seen when a separate source proxy is trained (the paper uses 20 of 100 epochs). 0: use the full pre-training as
    source proxy."""
    fraction: float = 0.5
    """Share of the images to keep."""
    among: float = 0.0
    """Draw the selected images at random among this share of the best (`platform.select among`), at least `fraction`; 0: take the
    best."""
    controls: list[str] = field(default_factory=list)
    """Also pre-train on other parts of the same size: random (a random part), inverse (the images with the lowest scores)."""
    target_proxy: str = "supervised"
    """Fine-tuning of the target proxy: supervised (as published; uses the target's labels) or usl (label-free). It has the image
    size of the pre-training, not that of finetune.augment: the score compares two models on the same images."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    """Settings of the supervised target proxy."""

    def __post_init__(self) -> None:
        at_least(0, "(no proxy of its own)", proxy_samples=self.proxy_samples)
        one_of(("supervised", "usl"), target_proxy=self.target_proxy)
        within("(0, 1]", fraction=self.fraction)
        within("[0, 1]", among=self.among)
        if 0 < self.among < self.fraction:
            raise ValueError(f"among must be at least cfs.fraction ({self.fraction:g}), or 0: got {self.among:g}")
        if set(self.controls) - set(CONTROLS) or len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls must be some of {', '.join(CONTROLS)}, each once: got {list(self.controls)}")
        if self.supervised.jigsaw.parts and self.target_proxy == "usl":
            raise ValueError(
                "supervised.jigsaw.parts must be 0 with cfs.target_proxy=usl, which has no supervised phase: got "
                f"{self.supervised.jigsaw.parts}"
            )

    @property
    def parts(self) -> list[str]:
        """The parts of the images to pre-train on: selected, and the controls random_part and inverse_part."""
        return [SELECTED, *(f"{control}_part" for control in CONTROLS if control in self.controls)]


@dataclass(kw_only=True)
class PipelineConfig:
    """Settings of all stages. The pipeline itself sets the inputs and outputs of each stage, such as pretrain.data."""

    output: OutputPath = "runs/pipeline"
    """Folder of all data, runs and results."""
    pretrain_set: RawConfig = field(default_factory=lambda: RawConfig(part="pretrain"))
    """Unlabeled images to pre-train on; required."""
    source_set: RawConfig = field(default_factory=lambda: RawConfig(part="source"))
    """Labeled source set of UDA; required for UDA only."""
    target_set: RawConfig = field(default_factory=lambda: RawConfig(part="target"))
    """Target set with identities in train, query and gallery; required unless settings=[]."""
    seed: int = 0
    """Seed of all stages, except for the generation of synthetic images."""
    seeds: list[int] = field(default_factory=list)
    """Run all stages after the ingest once for each of these seeds instead; the results are means over them."""
    concurrent: int = 1
    """Stages that run at the same time, each in a process of its own, when the stages that they need are complete. The workers of
    all of them must fit the cluster at once. 2 or more finish tiny models sooner even on one machine."""
    row_group_rows: int = 256
    """Images in a row group of the shards."""
    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    """Fine-tuning settings to run; []: none."""
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(output="", data=DataConfig(uri="")))
    finetune: FinetuneStageConfig = field(default_factory=FinetuneStageConfig)
    cfs: CfsConfig = field(default_factory=CfsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        at_least(1, row_group_rows=self.row_group_rows, concurrent=self.concurrent)
        at_least(0, seed=self.seed)
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different integers of at least 0: got {list(self.seeds)}")
        if set(self.settings) - set(SETTINGS) or len(set(self.settings)) < len(self.settings):
            raise ValueError(f"settings must be some of {', '.join(SETTINGS)}, each once: got {list(self.settings)}")
        if self.finetune.supervised.jigsaw.parts and set(self.settings) - {"supervised"}:
            raise ValueError(
                "finetune.supervised.jigsaw.parts must be 0 unless settings=[supervised], since clusters and memory hold one "
                f"feature of an image: got {self.finetune.supervised.jigsaw.parts} and settings {list(self.settings)}"
            )

    def with_seed(self, seed: int) -> "PipelineConfig":
        """The configuration of one of the seeds."""
        pretrain, finetune = replace(self.pretrain, seed=seed), replace(self.finetune, seed=seed)
        return replace(self, seed=seed, seeds=[], pretrain=pretrain, finetune=finetune)
