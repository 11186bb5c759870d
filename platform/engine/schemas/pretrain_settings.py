"""The settings of platform.pretrain."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.schemas.training_settings import (
    CheckpointConfig,
    ClipConfig,
    DeepSpeedConfig,
    EngineSettings,
    OptimizerConfig,
    ProbeConfig,
)
from platform.engine.storage.location import StorageConfig
from platform.engine.stream.order import StreamConfig
from platform.engine.train.scaling import ScalingConfig
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.checks import at_least, one_of, positive
from reidssl.choices import COMPILE_CHOICES, PRECISIONS
from reidssl.models.model_config import VitConfig
from reidssl.objectives.objective_config import ObjectiveConfig


@dataclass(kw_only=True)
class DataConfig:
    """The images to train on."""

    uri: InputPath = "runs/demo/data/pretrain"
    """Shards with a manifest, as written by platform.ingest."""
    selection: InputPath = ""
    """Folder written by platform.select: train on the selected images only. Empty: train on all images."""


@dataclass(kw_only=True)
class LengthConfig:
    """Length of the training. The schedules span this length."""

    epochs: float = 100.0
    """Passes over the data."""
    samples: int = 0
    """Length in images seen, to compare subsets at equal cost. 0: use epochs."""

    def __post_init__(self) -> None:
        positive(epochs=self.epochs)
        at_least(0, samples=self.samples)


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything a pre-training run depends on."""

    output: OutputPath = "runs/pretrain"
    """Run folder, local or s3://."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    data: DataConfig = field(default_factory=DataConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    model: VitConfig = field(default_factory=VitConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: MultiCropConfig = field(default_factory=MultiCropConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    precision: str = "auto"
    """fp32, bf16 (autocast of student and teacher; weights, optimizer moments, losses, center and moving average stay fp32), or
    auto: bf16 on GPUs, fp32 on CPUs."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    compile: str = "auto"
    """Compile the backbones with torch.compile, one graph for each crop size: on, off, or auto (on for GPUs that support it)."""

    def __post_init__(self) -> None:
        one_of(COMPILE_CHOICES, compile=self.compile)
        one_of(PRECISIONS, precision=self.precision)
        at_least(0, seed=self.seed)
        if self.clip.per_tensor and self.deepspeed.zero_stage != 0:
            raise ValueError(
                "clip.per_tensor needs deepspeed.zero_stage=0, where every worker holds whole gradients: "
                f"got zero_stage={self.deepspeed.zero_stage}"
            )
        if self.compile == "on" and self.deepspeed.zero_stage == 3:
            raise ValueError("compile=on needs whole parameters: use deepspeed.zero_stage=0, 1 or 2, or compile=auto")
        if self.model.num_cameras:
            raise ValueError(
                "model.num_cameras must be 0 in pre-training, whose images have no cameras: "
                f"got {self.model.num_cameras}. Fine-tuning learns camera embeddings (model.num_cameras there)"
            )
        if tuple(self.augment.global_size) != tuple(self.model.image_size):
            raise ValueError(
                f"augment.global_size must equal model.image_size {tuple(self.model.image_size)}: "
                f"got {tuple(self.augment.global_size)}"
            )
        if self.augment.num_local > 0:
            try:
                self.model.grid(*self.augment.local_size)
            except ValueError as error:
                raise ValueError(f"augment.local_size must fit the model, or augment.num_local be 0: {error}") from None
        if self.stream.micro_batch < 2 and self._compares_images():
            raise ValueError(
                f"stream.micro_batch must be at least 2 with {self._compares_images()}, which compares the images of a "
                f"micro-batch: got {self.stream.micro_batch}"
            )
        if self.optimizer.name == "lars" and self.deepspeed.zero_stage != 0:
            raise ValueError(
                "optimizer.name=lars needs deepspeed.zero_stage=0, where every tensor is whole: "
                f"got zero_stage={self.deepspeed.zero_stage}"
            )

    def _compares_images(self) -> str:
        """The setting by which the loss needs several images in a micro-batch; "" if none does.

        A batch norm in DINO's head needs two rows, which the two global crops of one image are.
        """
        name = self.objective.name
        if name in ("moco_v3", "moby"):
            return f"objective.name={name}"
        koleo = self.objective.dino_mim.koleo_weight if name == "dino_mim" else self.objective.dino.koleo_weight
        return f"objective.{name}.koleo_weight={koleo:g}" if koleo > 0 else ""

    @property
    def decode_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images in the stream, which the crops are cut from."""
        height, width = self.stream.decode_size or self.model.image_size
        return height, width

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(zero_stage=self.deepspeed.zero_stage, precision=self.precision, clip=self.clip)
