"""Settings of the optimizer, the engine, the checkpoints and the probe of a training run."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath
from reidssl.checks import at_least, one_of, within
from reidssl.choices import OPTIMIZERS


@dataclass(kw_only=True)
class OptimizerConfig:
    """Optimizer of pre-training and its schedules (TransReID-SSL, section 4.1; DINO)."""

    name: str = "adamw"
    """adamw, sgd or lars (arXiv 1708.03888). lars computes a rate per tensor and therefore needs deepspeed.zero_stage=0."""
    learning_rate: float = 5e-4
    """Peak learning rate per 256 images of global batch (linear scaling)."""
    learning_rate_final: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.04
    """Weight decay at the start."""
    weight_decay_final: float = 0.4
    """Weight decay at the end."""
    beta2: float = 0.999
    """Decay rate of the second moment (adamw only)."""
    momentum: float = 0.9
    """Momentum of sgd and lars; beta1 of adamw."""

    def __post_init__(self) -> None:
        one_of(OPTIMIZERS, name=self.name)
        at_least(
            0,
            learning_rate=self.learning_rate,
            learning_rate_final=self.learning_rate_final,
            warmup_epochs=self.warmup_epochs,
            weight_decay=self.weight_decay,
            weight_decay_final=self.weight_decay_final,
        )
        within("[0, 1)", beta2=self.beta2, momentum=self.momentum)


@dataclass(kw_only=True)
class DeepSpeedConfig:
    """How DeepSpeed ZeRO partitions the training state over the workers."""

    zero_stage: int = 1
    """ZeRO stage. 0: everything replicated; 1: optimizer states partitioned; 2: also gradients; 3: also parameters. A single
    worker always runs stage 0."""

    def __post_init__(self) -> None:
        one_of((0, 1, 2, 3), zero_stage=self.zero_stage)


@dataclass(kw_only=True)
class ClipConfig:
    """Gradient clipping."""

    norm: float = 3.0
    """Largest gradient norm; 0: no clipping."""
    per_tensor: bool = False
    """Clip each parameter tensor by its own norm, as the released pre-training code does. Needs deepspeed.zero_stage=0."""

    def __post_init__(self) -> None:
        at_least(0, "(off)", norm=self.norm)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of a program that the training engine needs."""

    zero_stage: int
    precision: str = "auto"
    clip: ClipConfig = field(default_factory=ClipConfig)


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every_steps: int = 500
    """Optimizer steps between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep; older ones are deleted."""
    keep_every_steps: int = 0
    """Never delete checkpoints at multiples of this number of steps, itself a multiple of every_steps. 0: no such checkpoints."""
    resume_from: InputPath = ""
    """Folder of another run on the same data. Start from its checkpoint and continue with the settings of this run."""
    resume_position: int = 0
    """Use the newest checkpoint of resume_from with at most this number of samples seen; 0: the newest."""

    def __post_init__(self) -> None:
        at_least(1, every_steps=self.every_steps, keep=self.keep)
        if self.keep_every_steps < 0 or self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"keep_every_steps must be 0 or a multiple of every_steps ({self.every_steps}): got {self.keep_every_steps}"
            )
        if self.resume_position < 0 or (self.resume_position and not self.resume_from):
            raise ValueError(
                f"resume_position must be 0, or a number of samples together with resume_from: got {self.resume_position}"
            )


@dataclass(kw_only=True)
class ProbeConfig:
    """A small labeled set on which the features are evaluated during training. It is never trained on."""

    uri: InputPath = ""
    """Labeled shards; empty: no probe."""
    split: str = "gallery"
    """Split of the probe set."""
    every_steps: int = 100
    """Optimizer steps between probes. Each of them makes a log line."""

    def __post_init__(self) -> None:
        at_least(1, every_steps=self.every_steps)
