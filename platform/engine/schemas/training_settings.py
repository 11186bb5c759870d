"""Settings of the training engine."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath
from reidssl.checks import at_least, one_of, within
from reidssl.choices import OPTIMIZERS


@dataclass(kw_only=True)
class OptimizerConfig:
    """Pre-training's optimizer and its schedules (METHOD: TransReID-SSL, section 4.1; DINO)."""

    name: str = "adamw"
    """adamw; sgd; or lars (arXiv 1708.03888), whose rates are per tensor and which therefore needs deepspeed.zero_stage=0."""
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
    """AdamW's second momentum."""
    momentum: float = 0.9
    """First momentum, of all three."""

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
    """How the optimizer's state is partitioned."""

    zero_stage: int = 1
    """0: replicated; 1: optimizer states partitioned; 2: gradients too; 3: parameters too. One worker alone has nobody to
    share with and runs as with 0."""

    def __post_init__(self) -> None:
        one_of((0, 1, 2, 3), zero_stage=self.zero_stage)


@dataclass(kw_only=True)
class ClipConfig:
    """How far a gradient may go."""

    norm: float = 3.0
    """Largest gradient norm; 0 switches clipping off."""
    per_tensor: bool = False
    """Clip every parameter tensor on its own, as the released pre-training does; only deepspeed.zero_stage=0."""

    def __post_init__(self) -> None:
        at_least(0, "(off)", norm=self.norm)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What the engine around the model is told: the parts of a program's settings that are about its steps."""

    zero_stage: int
    precision: str = "auto"
    clip: ClipConfig = field(default_factory=ClipConfig)


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 500
    """Optimizer steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; older ones are deleted."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of so many steps (a multiple of every_steps) are kept for good; 0: none."""
    resume_from: InputPath = ""
    """Folder of another run on the same data: begin from its checkpoint, with this run's settings from there on."""
    resume_position: int = 0
    """Newest checkpoint of resume_from with at most so many samples seen; 0: the newest."""

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
    """A small labeled set that is only looked at, never trained on."""

    uri: InputPath = ""
    """Labeled shards; empty: no probe."""
    split: str = "gallery"
    """Which split of it."""
    every_steps: int = 100
    """Optimizer steps between probes (a multiple of tracking.every_steps)."""

    def __post_init__(self) -> None:
        at_least(1, every_steps=self.every_steps)
