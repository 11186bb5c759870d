"""The settings of platform.finetune."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.schemas.phases_settings import BackboneOverrides, SupervisedConfig, UnsupervisedConfig
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.schemas.training_settings import DeepSpeedConfig
from platform.engine.storage.location import StorageConfig
from platform.engine.train.scaling import ScalingConfig
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.checks import at_least, one_of, within
from reidssl.models.given import LoadConfig
from reidssl.models.model_config import VitConfig

SETTINGS = ("supervised", "uda", "usl")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Everything a fine-tuning run depends on."""

    output: OutputPath = "runs/finetune"
    """Run folder, local or s3://."""
    setting: str = "supervised"
    """supervised, uda or usl."""
    init: InputPath = ""
    """Pre-training run or checkpoint file to start from; empty: random weights."""
    source: InputPath = ""
    """Labeled shards of the source set (uda only)."""
    target: InputPath = "runs/demo/data/target"
    """Shards of the target set with splits train, query and gallery."""
    seed: int = 0
    """Seed of batches, augmentation, drop path and new layers."""
    max_corrupt_share: float = 0.01
    """Largest share of a split's images that may be undecodable: those are left out and listed; above it (and above one image)
    the run stops."""
    evaluate_every: int = 0
    """Also evaluate every so many epochs; 0: at the end only."""
    model: VitConfig = field(default_factory=VitConfig)
    """Backbone for random weights. With init its own configuration counts, but for the image size (augment.image_size),
    `changes`, and num_cameras: above 0 (as many as the training images come from), new camera embeddings are learned."""
    load: LoadConfig = field(default_factory=LoadConfig)
    """Of init; its mean, std and neck are not used here."""
    changes: BackboneOverrides = field(default_factory=BackboneOverrides)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    augment: ReidAugmentConfig = field(default_factory=ReidAugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=lambda: DeepSpeedConfig(clip=0.0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        one_of(SETTINGS, setting=self.setting)
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)
        at_least(0, seed=self.seed)
        at_least(0, "(end only)", evaluate_every=self.evaluate_every)
        if self.setting == "uda" and not self.source:
            raise ValueError("source must name the labeled source set for setting=uda: got ''")
        if not self.init and tuple(self.augment.image_size) != tuple(self.model.image_size):
            raise ValueError(f"augment.image_size must equal model.image_size {tuple(self.model.image_size)}: "
                             f"got {tuple(self.augment.image_size)}")
        if self.deepspeed.zero_stage == 3:
            raise ValueError("deepspeed.zero_stage must be 0, 1 or 2: got 3. Fine-tuning evaluates and exports the model between "
                             "its phases, for which every worker holds it whole")
        if self.evaluate.tasks:
            raise ValueError("evaluate.tasks must be 0 in fine-tuning, whose workers rank by themselves: "
                             f"got {self.evaluate.tasks}")
        if not self.init and self.changes.as_dict():
            raise ValueError(f"changes are made to the backbone of init, which is empty: set {', '.join(self.changes.as_dict())} "
                             "of model instead")
        for name, own in (("mean", "augment.mean"), ("std", "augment.std"), ("neck", "supervised.neck or unsupervised.neck")):
            if getattr(self.load, name):
                raise ValueError(f"load.{name} must be empty in fine-tuning, which has its own: set {own}")
        if not self.init and self.load.as_dict():
            raise ValueError(f"load says what the file of init does not, and init is empty: got {self.load.as_dict()}")
