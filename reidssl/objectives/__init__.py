"""Self-supervised objectives, all with the interface of `reidssl.objectives.base.Objective`; one config chooses one."""

from dataclasses import dataclass, field

from reidssl.models.vit import VitConfig
from reidssl.objectives.base import Objective
from reidssl.objectives.dino import Dino, DinoConfig
from reidssl.objectives.dino_mim import DinoMim, DinoMimConfig
from reidssl.objectives.moby import Moby, MobyConfig
from reidssl.objectives.moco_v3 import MocoV3, MocoV3Config

NAMES = ("dino", "dino_mim", "moco_v3", "moby")


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
        if self.name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(NAMES)}: got {self.name!r}")

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


def build_objective(backbone: VitConfig, config: ObjectiveConfig, seed: int = 0) -> Objective:
    """A new objective whose weights are a function of the arguments."""
    if config.name == "dino":
        return Dino(backbone, config.dino, seed)
    if config.name == "dino_mim":
        return DinoMim(backbone, config.dino_mim, seed)
    if config.name == "moby":
        return Moby(backbone, config.moby, seed)
    return MocoV3(backbone, config.moco_v3, seed)
