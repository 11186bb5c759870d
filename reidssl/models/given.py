"""Settings for properties that a model file does not state, and the error if one is missing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reidssl.checks import at_least, height_and_width_or_empty, one_of
from reidssl.choices import NECKS


@dataclass(kw_only=True)
class LoadConfig:
    """Properties of a checkpoint file that the file does not state.

    Empty or 0 means: as the file states it, else as in the published layout, and then the report says that it is assumed.
    Values in our own files must not be contradicted, except for mean, std and neck, which concern the use of the model.
    """

    weights: str = ""
    """Which of several models in the file to load: teacher, student, model_ema, ... Empty: the usual one, or an error."""
    heads: int = 0
    """Number of attention heads: 3, 6, 12 and 16 for ViT-Ti, S, B and L, but 12 for MoCo v3's ViT-S."""
    image_size: list[int] = field(default_factory=list)
    """[height, width] in pixels of the images that the model's position embeddings belong to."""
    stride: int = 0
    """Distance between the model's patches in pixels; smaller than the patch size if patches overlap."""
    mean: list[float] = field(default_factory=list)
    """Mean of red, green and blue (0 to 1) with which the model's images are normalized."""
    std: list[float] = field(default_factory=list)
    """Standard deviation of red, green and blue (0 to 1) with which the model's images are normalized."""
    neck: str = ""
    """Side of the neck whose feature is used: before or after."""
    gem_pooling: bool = False
    """The model was trained with the generalized mean of the patch tokens added to the class token."""
    cameras: list[int] = field(default_factory=list)
    """Camera numbers of the data in the order of the model's camera embeddings; -1 for a camera of another data set."""
    camera_weight: float = 0.0
    """Weight of the model's camera embeddings. 0: 3, as published."""

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
        """The fields that are set, without empty ones."""
        return {name: value for name, value in asdict(self).items() if value}


class Unsaid(ValueError):
    """A property of a model is neither stated by its file nor can be inferred; the field `field` of LoadConfig provides it."""

    def __init__(self, source_name: str, problem: str, field: str, answers: Sequence[str]) -> None:
        self.source_name, self.problem, self.field, self.answers = source_name, problem, field, tuple(answers)
        super().__init__(self.text("load"))

    def text(self, section: str) -> str:
        """The message, with settings as a program accepts them, such as `load.heads=12`; section: the part before the dot."""
        wanted = " or ".join(f"{section}.{self.field}={answer}" for answer in self.answers)
        return f"{self.source_name} {self.problem}. Give {wanted}"
