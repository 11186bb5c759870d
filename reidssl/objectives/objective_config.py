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
    """Settings of DINO; the defaults are those of TransReID-SSL on LUPerson."""

    out_dim: int = 65536
    """Number of prototypes K."""
    hidden: int = 2048
    """Hidden width of the head's MLP."""
    bottleneck: int = 256
    """Width of the head before its last layer."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax after warm-up; lower is sharper."""
    warmup_teacher_temperature: float = 0.04
    """Teacher temperature at the start."""
    warmup_teacher_temperature_epochs: int = 0
    """Epochs in which the teacher temperature goes to its final value in equal steps, one an epoch; the last of them has it."""
    centering: str = "center"
    """What keeps one prototype from dominating: center (a running mean is subtracted) or sinkhorn_knopp (each
    micro-batch's targets use all prototypes equally, 3 iterations)."""
    center_momentum: float = 0.9
    """Weight of the old center in each step's update."""
    koleo_weight: float = 0.0
    """Weight of the KoLeo regularizer on the student's features of each global crop; 0.1 in DINOv2, 0 leaves it out."""
    teacher_momentum: float = 0.996
    """Weight of the old teacher at the start; the training loop raises it to 1 on a cosine."""
    freeze_last_layer_epochs: int = 1
    """Epochs in which the last layer gets no gradient."""

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
    """DINO's settings, with iBOT's for the patches; temperatures and centring are the same for both."""

    out_dim: int = 8192
    """Number of prototypes K."""
    patch_weight: float = 1.0
    """Weight of the patches' loss."""
    mask_share: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of a masked crop's patches that are masked."""
    mask_aspect: float = 0.3
    """Masked blocks have a height / width in [this, 1 / this]."""
    shared_head: bool = True
    """Patches go through the head of the class token; false: through one of their own."""
    patch_out_dim: int = 8192
    """Prototypes of the patches' own head (shared_head=false only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mask_ratio = (float(self.mask_ratio[0]), float(self.mask_ratio[1]))  # YAML gives lists
        at_least(0, patch_weight=self.patch_weight)
        within("(0, 1]", mask_share=self.mask_share, mask_aspect=self.mask_aspect)
        increasing("(0, 1)", mask_ratio=self.mask_ratio)
        at_least(1, patch_out_dim=self.patch_out_dim)


@dataclass(kw_only=True)
class MocoV3Config:
    """Settings of MoCo v3; the defaults are the paper's for ViT-S."""

    out_dim: int = 256
    """Width C of the embedding in which views are contrasted."""
    hidden: int = 4096
    """Hidden width of projector and predictor."""
    projector_layers: int = 3
    """Layers of the projector; 0 contrasts the backbone's own features, for very small models."""
    temperature: float = 0.2
    """Of the softmax over the images of a micro-batch."""
    teacher_momentum: float = 0.99
    """Weight of the old momentum encoder at the start; the training loop raises it to 1 on a cosine."""
    freeze_patch_embed: bool = False
    """Leave the stem at its random weights, which steadies the training of large ViTs (paper, section 4)."""

    def __post_init__(self) -> None:
        at_least(1, out_dim=self.out_dim, hidden=self.hidden)
        at_least(0, projector_layers=self.projector_layers)
        positive(temperature=self.temperature)
        within("[0, 1]", teacher_momentum=self.teacher_momentum)


@dataclass(kw_only=True)
class MobyConfig:
    """Settings of MoBY; the defaults are its paper's. Its drop path of 0.1 to 0.2 is that of the model: model.drop_path."""

    out_dim: int = 256
    """Width C of the embedding in which views are contrasted."""
    hidden: int = 4096
    """Hidden width of projector and predictor."""
    projector_layers: int = 2
    """Layers of the projector; the predictor has two."""
    queue_size: int = 4096
    """Keys Q of earlier images that each view is contrasted with; at least the global batch makes full use of each step."""
    temperature: float = 0.2
    """Of the softmax over the own key and the queue."""
    teacher_momentum: float = 0.99
    """Weight of the old momentum encoder at the start; the training loop raises it to 1 on a cosine."""
    teacher_drop_path: float = 0.0
    """Stochastic depth rate of the momentum encoder: less than the student's makes the pair asymmetric."""

    def __post_init__(self) -> None:
        at_least(1, out_dim=self.out_dim, hidden=self.hidden, projector_layers=self.projector_layers, queue_size=self.queue_size)
        positive(temperature=self.temperature)
        within("[0, 1]", teacher_momentum=self.teacher_momentum)
        within("[0, 1)", teacher_drop_path=self.teacher_drop_path)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """Which objective, and the settings of each."""

    name: str = "dino"
    """dino, dino_mim, moco_v3 or moby."""
    dino: DinoConfig = field(default_factory=DinoConfig)
    dino_mim: DinoMimConfig = field(default_factory=DinoMimConfig)
    moco_v3: MocoV3Config = field(default_factory=MocoV3Config)
    moby: MobyConfig = field(default_factory=MobyConfig)

    def __post_init__(self) -> None:
        one_of(NAMES, name=self.name)

    @property
    def teacher_momentum(self) -> float:
        """Of the chosen objective: weight of the old teacher at the start of a run."""
        return float(getattr(self, self.name).teacher_momentum)

    def entropy_choices(self, micro_batch: int) -> int:
        """Among how many the chosen objective's teacher softmax chooses, for micro-batches of so many images."""
        if self.name == "moco_v3":
            return micro_batch
        if self.name == "moby":
            return 1 + self.moby.queue_size
        return (self.dino if self.name == "dino" else self.dino_mim).out_dim
