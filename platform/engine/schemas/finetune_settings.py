"""The settings of platform.finetune."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.schemas.phases_settings import BackboneOverrides, SupervisedConfig, UnsupervisedConfig
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.schemas.training_settings import ClipConfig, DeepSpeedConfig, EngineSettings
from platform.engine.storage.location import StorageConfig
from platform.engine.train.scaling import ScalingConfig
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.checks import at_least, one_of, within
from reidssl.choices import PRECISIONS, RETRIEVAL_METRICS
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
    checkpoint: InputPath = ""
    """Pre-training run or checkpoint file to start from; empty: random weights."""
    source_set: InputPath = ""
    """Labeled shards of the source set (uda only)."""
    target_set: InputPath = "runs/demo/data/target"
    """Shards of the target set with splits train, query and gallery."""
    train_fraction: float = 1.0
    """Share of the target's training identities that is used (of its images, if some have no identity), drawn with `seed`."""
    seed: int = 0
    """Seed of batches, augmentation, drop path and the initial values of new layers."""
    max_corrupt_share: float = 0.01
    """Largest share of undecodable images in a split. Such images are skipped and listed; the run stops if there are more than
    this share and more than one image."""
    evaluate_every: int = 0
    """Epochs between evaluations; 0: evaluate only at the end."""
    save_every_steps: int = 0
    """Optimizer steps between checkpoints inside an epoch, for long epochs; 0: a checkpoint after each epoch only."""
    evaluate_start: bool = True
    """Also evaluate the weights before the first epoch, to show what fine-tuning adds."""
    start_features: OutputPath = ""
    """Folder in which runs share the features of their initial weights; platform.tune gives its trials one. Empty: not shared."""
    keep_best: str = ""
    """Metric (mAP, rank1, rank5, rank10 or mINP) by which the model of the best evaluation is kept as best.safetensors beside the
    last one, model.safetensors; empty: keep the last only. The evaluation is on the test images, so the figure is optimistic."""
    train_sets: list[InputPath] = field(default_factory=list)
    """Further labeled shards whose train splits are joined to the labeled set: the target (supervised) or the source (uda).
    Identities and cameras are kept apart. The paper's target proxy is trained on Market-1501 and MSMT17."""
    model: VitConfig = field(default_factory=VitConfig)
    """Backbone when starting from random weights. With a checkpoint, only num_cameras and camera_weight are used: num_cameras
    above 0 (the number of cameras of the training images) learns new camera embeddings."""
    load: LoadConfig = field(default_factory=LoadConfig)
    """What the file of `checkpoint` does not say. mean, std and neck are not used here."""
    overrides: BackboneOverrides = field(default_factory=BackboneOverrides)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    augment: ReidAugmentConfig = field(default_factory=ReidAugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    precision: str = "auto"
    """fp32, bf16 (autocast of the model; weights, optimizer moments and losses stay fp32), or auto: bf16 on GPUs, fp32 on
    CPUs."""
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(norm=0.0))
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        one_of(SETTINGS, setting=self.setting)
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)
        within("(0, 1]", train_fraction=self.train_fraction)
        one_of(PRECISIONS, precision=self.precision)
        at_least(0, seed=self.seed)
        at_least(0, "(end only)", evaluate_every=self.evaluate_every)
        at_least(0, "(after epochs only)", save_every_steps=self.save_every_steps)
        if self.setting == "uda" and not self.source_set:
            raise ValueError("source_set must name the labeled source set for setting=uda: got ''")
        if not self.checkpoint and tuple(self.augment.image_size) != tuple(self.model.image_size):
            raise ValueError(
                f"augment.image_size must equal model.image_size {tuple(self.model.image_size)}: "
                f"got {tuple(self.augment.image_size)}"
            )
        if self.keep_best:
            one_of(RETRIEVAL_METRICS, keep_best=self.keep_best)
            if not self.evaluate_every:
                raise ValueError(f"keep_best={self.keep_best} needs evaluations during training: give evaluate_every=1 or more")
        if self.supervised.jigsaw.parts and self.setting != "supervised":
            raise ValueError(
                f"supervised.jigsaw.parts must be 0 with setting={self.setting}, whose clusters and memory hold one feature of "
                f"an image, without local ones: got {self.supervised.jigsaw.parts}"
            )
        if self.train_sets and self.setting == "usl":
            raise ValueError(f"train_sets are labeled, setting=usl has no labels: got {self.train_sets}")
        if self.train_sets and self.model.num_cameras:
            raise ValueError("train_sets must be empty with camera embeddings (model.num_cameras), which are those of one set")
        if self.deepspeed.zero_stage == 3:
            raise ValueError(
                "deepspeed.zero_stage must be 0, 1 or 2: got 3. Fine-tuning evaluates and exports the model between "
                "its phases, for which every worker holds it whole"
            )
        if self.evaluate.tasks:
            raise ValueError(
                f"evaluate.tasks must be 0 in fine-tuning, whose workers rank by themselves: got {self.evaluate.tasks}"
            )
        if not self.checkpoint and self.overrides.as_dict():
            raise ValueError(
                f"overrides are made to the backbone of checkpoint, which is empty: set {', '.join(self.overrides.as_dict())} "
                "of model instead"
            )
        for name, own in (("mean", "augment.mean"), ("std", "augment.std"), ("neck", "supervised.neck or unsupervised.neck")):
            if getattr(self.load, name):
                raise ValueError(f"load.{name} must be empty in fine-tuning, which has its own: set {own}")
        if not self.checkpoint and self.load.as_dict():
            raise ValueError(
                f"load says what the file of checkpoint does not, and checkpoint is empty: got {self.load.as_dict()}"
            )

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(zero_stage=self.deepspeed.zero_stage, precision=self.precision, clip=self.clip)
