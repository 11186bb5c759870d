"""Settings of the objectives, importable without torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reidssl.checks import at_least, increasing, one_of, positive, within

if TYPE_CHECKING:
    from reidssl.objectives.base import Progress

CENTERINGS = ("center", "sinkhorn_knopp")
NAMES = ("dino", "dino_mim", "moco_v3", "moby")


@dataclass(kw_only=True)
class DinoConfig:
    """Settings of DINO. The defaults are those of TransReID-SSL on LUPerson."""

    out_dim: int = 65536
    """Number of prototypes K."""
    hidden: int = 2048
    """Hidden width of the head's MLP."""
    bottleneck: int = 256
    """Width of the head before its last layer."""
    head_batch_norm: bool = False
    """Batch norm in the head's hidden layers, the released code's use_bn_in_head."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax after warm-up; lower is sharper."""
    warmup_teacher_temperature: float = 0.04
    """Teacher temperature at the start of the warm-up."""
    warmup_teacher_temperature_epochs: int = 0
    """Number of epochs in which the teacher temperature changes to its final value, in equal steps from epoch to epoch."""
    centering: str = "center"
    """How a single prototype is kept from dominating: center (subtract a running mean) or sinkhorn_knopp (the targets of
    each micro-batch use all prototypes equally, 3 iterations)."""
    center_momentum: float = 0.9
    """Weight of the old center in the update of each step."""
    koleo_weight: float = 0.0
    """Weight of the KoLeo regularizer on the student's features of each global crop. DINOv2 uses 0.1; 0 switches it off."""
    teacher_momentum: float = 0.996
    """Momentum of the teacher at the start; the training loop raises it to 1 with a cosine schedule."""
    freeze_last_layer_epochs: int = 1
    """Number of epochs at the start in which the last layer is frozen."""

    def __post_init__(self) -> None:
        at_least(1, out_dim=self.out_dim, hidden=self.hidden, bottleneck=self.bottleneck)
        positive(
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            warmup_teacher_temperature=self.warmup_teacher_temperature,
        )
        one_of(CENTERINGS, centering=self.centering)
        at_least(
            0,
            warmup_teacher_temperature_epochs=self.warmup_teacher_temperature_epochs,
            freeze_last_layer_epochs=self.freeze_last_layer_epochs,
            koleo_weight=self.koleo_weight,
        )
        within("[0, 1]", center_momentum=self.center_momentum, teacher_momentum=self.teacher_momentum)

    def teacher_temperature_at(self, progress: "Progress") -> float:
        """The teacher's temperature at a position of the run, constant within an epoch as released.

        It is np.linspace(first, last, n)[epoch] for the n epochs of the warm-up, and `teacher_temperature` after them.
        """
        if progress.epoch >= self.warmup_teacher_temperature_epochs:
            return self.teacher_temperature
        share = progress.epoch / max(1, self.warmup_teacher_temperature_epochs - 1)
        return (1.0 - share) * self.warmup_teacher_temperature + share * self.teacher_temperature


@dataclass(kw_only=True)
class DinoMimConfig(DinoConfig):
    """Settings of DINO with iBOT's settings for patches. Temperatures and centering are the same for both."""

    out_dim: int = 8192
    """Number of prototypes K."""
    patch_weight: float = 1.0
    """Weight of the patches' loss in the total loss."""
    mask_share: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of the patches of a masked crop that are masked."""
    mask_aspect: float = 0.3
    """Smallest height / width ratio of masked blocks; the largest is its inverse."""
    shared_head: bool = True
    """Use one head for class token and patches. false: patches have a separate head."""
    patch_out_dim: int = 8192
    """Number of prototypes of the separate patch head (shared_head=false only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mask_ratio = (float(self.mask_ratio[0]), float(self.mask_ratio[1]))  # YAML gives lists
        at_least(0, patch_weight=self.patch_weight)
        within("(0, 1]", mask_share=self.mask_share, mask_aspect=self.mask_aspect)
        increasing("(0, 1)", mask_ratio=self.mask_ratio)
        at_least(1, patch_out_dim=self.patch_out_dim)


@dataclass(kw_only=True)
class MocoV3Config:
    """Settings of MoCo v3. The defaults are those of the paper for ViT-S."""

    out_dim: int = 256
    """Width C of the embedding used for the contrastive loss."""
    hidden: int = 4096
    """Hidden width of projector and predictor."""
    projector_layers: int = 3
    """Number of layers of the projector. 0: no projector and predictor, the loss uses backbone features (very small models)."""
    temperature: float = 0.2
    """Temperature of the softmax over the images of a micro-batch."""
    teacher_momentum: float = 0.99
    """Momentum of the momentum encoder at the start; the training loop raises it to 1 with a cosine schedule."""
    freeze_patch_embed: bool = False
    """Keep the stem at its random initial weights, which stabilizes the training of large ViTs (paper, section 4)."""

    def __post_init__(self) -> None:
        at_least(1, out_dim=self.out_dim, hidden=self.hidden)
        at_least(0, projector_layers=self.projector_layers)
        positive(temperature=self.temperature)
        within("[0, 1]", teacher_momentum=self.teacher_momentum)


@dataclass(kw_only=True)
class MobyConfig:
    """Settings of MoBY. The defaults are those of the paper; set its drop path rate of 0.1 to 0.2 with model.drop_path."""

    out_dim: int = 256
    """Width C of the embedding used for the contrastive loss."""
    hidden: int = 4096
    """Hidden width of projector and predictor."""
    projector_layers: int = 2
    """Number of layers of the projector. The predictor has two."""
    queue_size: int = 4096
    """Number Q of keys of earlier images in the queue of each view. It should be at least the global batch size."""
    temperature: float = 0.2
    """Temperature of the softmax over the own key and the queue."""
    teacher_momentum: float = 0.99
    """Momentum of the momentum encoder at the start; the training loop raises it to 1 with a cosine schedule."""
    teacher_drop_path: float = 0.0
    """Drop path rate of the momentum encoder. A lower rate than the student's makes the pair asymmetric."""

    def __post_init__(self) -> None:
        at_least(1, out_dim=self.out_dim, hidden=self.hidden, projector_layers=self.projector_layers, queue_size=self.queue_size)
        positive(temperature=self.temperature)
        within("[0, 1]", teacher_momentum=self.teacher_momentum)
        within("[0, 1)", teacher_drop_path=self.teacher_drop_path)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """Choice of the objective, and the settings of each objective."""

    name: str = "dino"
    """Objective: dino, dino_mim, moco_v3 or moby."""
    dino: DinoConfig = field(default_factory=DinoConfig)
    dino_mim: DinoMimConfig = field(default_factory=DinoMimConfig)
    moco_v3: MocoV3Config = field(default_factory=MocoV3Config)
    moby: MobyConfig = field(default_factory=MobyConfig)

    def __post_init__(self) -> None:
        one_of(NAMES, name=self.name)

    @property
    def teacher_momentum(self) -> float:
        """Momentum of the teacher of the chosen objective at the start of a run."""
        return float(getattr(self, self.name).teacher_momentum)

    def entropy_choices(self, micro_batch: int) -> int:
        """Number of classes of the chosen objective's teacher softmax. micro_batch: number of images of a micro-batch."""
        if self.name == "moco_v3":
            return micro_batch
        if self.name == "moby":
            return 1 + self.moby.queue_size
        return (self.dino if self.name == "dino" else self.dino_mim).out_dim
