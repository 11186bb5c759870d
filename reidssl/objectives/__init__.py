"""Self-supervised objectives, all with the interface of `reidssl.objectives.base.Objective`; one config chooses one."""

from typing import TYPE_CHECKING

from reidssl.objectives.objective_config import NAMES, ObjectiveConfig

if TYPE_CHECKING:  # their settings, beside them in this package, are read without torch
    from reidssl.models.model_config import VitConfig
    from reidssl.objectives.base import Objective

__all__ = ["NAMES", "ObjectiveConfig", "build_objective"]


def build_objective(backbone: "VitConfig", config: ObjectiveConfig, seed: int = 0) -> "Objective":
    """A new objective whose weights are a function of the arguments."""
    from reidssl.objectives.dino import Dino
    from reidssl.objectives.dino_mim import DinoMim
    from reidssl.objectives.moby import Moby
    from reidssl.objectives.moco_v3 import MocoV3

    if config.name == "dino":
        return Dino(backbone, config.dino, seed)
    if config.name == "dino_mim":
        return DinoMim(backbone, config.dino_mim, seed)
    if config.name == "moby":
        return Moby(backbone, config.moby, seed)
    return MocoV3(backbone, config.moco_v3, seed)
