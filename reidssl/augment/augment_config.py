"""Settings of the augmentations, importable without torch."""

from dataclasses import dataclass, field

from reidssl.augment.image_checks import check_positive_size, check_probability, check_statistics

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class MultiCropConfig:
    """The released recipe's augmentation; strengths are meant as in torchvision."""

    global_size: tuple[int, int] = (256, 128)
    """Size of the two global crops."""
    local_size: tuple[int, int] = (128, 64)
    """Size of the local crops."""
    num_local: int = 8
    """Number of local crops; 0 leaves the two global ones."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of the image's area in a global crop."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Smallest and largest share of the image's area in a local crop."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height of the crops. The released 3/4..4/3 never shows more than some 60 % of a tall
    image's height, and makes most global crops the same central one; 1/3..1/2 suits person images better."""
    flip: float = 0.5
    """Probability of mirroring a crop left to right."""
    jitter: float = 0.8
    """Probability of the colour jitter."""
    brightness: float = 0.4
    """Brightness factors are drawn from [1 - this, 1 + this]."""
    contrast: float = 0.4
    """Contrast factors are drawn from [1 - this, 1 + this]."""
    saturation: float = 0.2
    """Saturation factors are drawn from [1 - this, 1 + this]."""
    hue: float = 0.1
    """The hue is turned by a share of the circle drawn from [-this, this]; at most 0.5."""
    greyscale: float = 0.2
    """Probability of a grey crop."""
    blur_global1: float = 1.0
    """Probability of blurring the first global crop."""
    blur_global2: float = 0.1
    """Probability of blurring the second global crop."""
    blur_local: float = 0.5
    """Probability of blurring a local crop."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of the crop."""
    solarise: float = 0.2
    """Probability of solarising the second global crop."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Mean of each channel, subtracted at the end."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Standard deviation of each channel, divided by at the end."""

    def __post_init__(self) -> None:
        check_positive_size("global_size", self.global_size)
        check_positive_size("local_size", self.local_size)
        if self.num_local < 0:
            raise ValueError(f"num_local must not be negative: got {self.num_local}")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(f"{name} must be an increasing pair within (0, 1]: got {(low, high)}")
        for name in ("aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise ValueError(f"{name} must be an increasing pair of positive numbers: got {(low, high)}")
        for name in ("flip", "jitter", "greyscale", "blur_global1", "blur_global2", "blur_local", "solarise"):
            check_probability(name, getattr(self, name))
        for name, limit in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0.0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in [0, {limit}]: got {getattr(self, name)}")
        check_statistics(self.mean, self.std)


@dataclass(kw_only=True)
class ReidAugmentConfig:
    """The released fine-tuning recipe's augmentation."""

    image_size: tuple[int, int] = (256, 128)
    """(height, width) of the result; images of another size are resized first (bicubic)."""
    flip: float = 0.5
    """Probability of mirroring an image left to right."""
    pad: int = 10
    """Black pixels added on every side before a crop of `image_size` is taken at random."""
    erasing: float = 0.5
    """Probability of erasing a rectangle (Random Erasing, arXiv 1708.04896)."""
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the image's area in the rectangle."""
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Range of height / width of the rectangle, drawn log-uniformly."""
    erasing_noise: bool = True
    """Fill the rectangle with standard normal noise (after normalising); otherwise with the mean colour."""
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Mean of each channel, subtracted at the end."""
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Standard deviation of each channel, divided by at the end."""

    def __post_init__(self) -> None:
        check_positive_size("image_size", self.image_size)
        check_probability("flip", self.flip)
        check_probability("erasing", self.erasing)
        if self.pad < 0:
            raise ValueError(f"pad must not be negative: got {self.pad}")
        low, high = self.erasing_area
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"erasing_area must be an increasing pair within (0, 1]: got {(low, high)}")
        low, high = self.erasing_aspect
        if not 0.0 < low <= high:
            raise ValueError(f"erasing_aspect must be an increasing pair of positive numbers: got {(low, high)}")
        check_statistics(self.mean, self.std)
