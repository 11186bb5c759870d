"""What a model file does not say: what the caller knows of it, and the refusal to guess."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reidssl.checks import at_least, height_and_width_or_empty, one_of
from reidssl.choices import NECKS


@dataclass(kw_only=True)
class LoadConfig:
    """What a checkpoint file does not say. Empty or 0: as the file says, or as whoever published its layout has it (stated).

    What a file of ours says may not be contradicted, except for mean, std and neck, which belong to its use.
    """

    weights: str = ""
    """Which of several models in the file: teacher, student, model_ema, ...; empty: the usual one, or refused."""
    heads: int = 0
    """Attention heads: 3, 6, 12 and 16 for ViT-Ti, S, B and L, but 12 for MoCo v3's ViT-S."""
    image_size: list[int] = field(default_factory=list)
    """[height, width] of the images that its position embeddings belong to."""
    stride: int = 0
    """Distance between patches that its position embeddings belong to; smaller than the patch where they overlap."""
    mean: list[float] = field(default_factory=list)
    """Mean of red, green and blue (0 to 1) that its images are normalized with."""
    std: list[float] = field(default_factory=list)
    """Standard deviation of the same."""
    neck: str = ""
    """Side of the neck whose feature is used: before or after."""
    gem_pooling: bool = False
    """It was trained with the generalized mean of the patch tokens added to the class token."""
    cameras: list[int] = field(default_factory=list)
    """Camera numbers of the data in the order of its camera embeddings; -1 for one of another data set."""
    camera_weight: float = 0.0
    """Weight of its camera embeddings; 0: 3, as published."""

    def __post_init__(self) -> None:
        at_least(0, "(not given)", heads=self.heads, stride=self.stride, camera_weight=self.camera_weight)
        height_and_width_or_empty(image_size=self.image_size)
        if self.neck:
            one_of(NECKS, neck=self.neck)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and (len(values) != 3 or not all(0 <= value <= 1 for value in values)):
                raise ValueError(f"{name} must be three numbers in [0, 1] or []: got {list(values)}")
        if self.std and not min(self.std):
            raise ValueError(f"std must be above 0: got {list(self.std)}")
        known = [camera for camera in self.cameras if camera >= 0]
        if len(set(known)) != len(known) or any(camera < -1 for camera in self.cameras):
            raise ValueError(f"cameras must be different numbers, 0 or more, or -1: got {list(self.cameras)}")

    def as_dict(self) -> dict[str, Any]:
        """What was given, without what was left open."""
        return {name: value for name, value in asdict(self).items() if value}


class Unsaid(ValueError):
    """Something that the file does not say and that cannot be told from it; `field` of LoadConfig answers it."""

    def __init__(self, source_name: str, problem: str, field: str, answers: Sequence[str]) -> None:
        self.source_name, self.problem, self.field, self.answers = source_name, problem, field, tuple(answers)
        super().__init__(self.text("load"))

    def text(self, section: str) -> str:
        """With the keys as a program has them: `load.heads=12`."""
        wanted = " or ".join(f"{section}.{self.field}={answer}" for answer in self.answers)
        return f"{self.source_name} {self.problem}. Give {wanted}"
