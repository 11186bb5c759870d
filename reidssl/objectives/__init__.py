"""Self-supervised objectives with the common interface `reidssl.objectives.base.Objective`. A configuration selects one."""

from typing import TYPE_CHECKING

from reidssl.objectives.objective_config import NAMES, ObjectiveConfig

if TYPE_CHECKING:  # the settings in this package must be importable without torch
    from reidssl.models.model_config import VitConfig
    from reidssl.objectives.base import Objective

__all__ = ["NAMES", "ObjectiveConfig", "build_objective"]


def build_objective(backbone: "VitConfig", config: ObjectiveConfig, seed: int = 0) -> "Objective":
    """A new objective with initial weights that depend on the arguments alone."""
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
