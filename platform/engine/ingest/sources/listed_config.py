"""Settings of the source of listed videos, in a module that loads without the library for videos."""

from dataclasses import dataclass

from platform.engine.config.paths import InputPath
from reidssl.checks import one_of

WITHOUT_SIZE = ("reject", "video", "boxes")


@dataclass(kw_only=True)
class ListedConfig:
    """The published list, and the sizes that the published detections lack."""

    names: InputPath = ""
    """List of the videos, a line country+city+key for each (vnames.txt)."""
    sizes: InputPath = ""
    """Lines name,height,width: size in pixels of the frames in which the people of a video were detected."""
    without_size: str = "reject"
    """A video without a size, here or in crops.recorded_size: reject it, take the size that the video has now (video), or the
    smallest usual size that holds all its boxes (boxes)."""

    def __post_init__(self) -> None:
        one_of(WITHOUT_SIZE, without_size=self.without_size)
