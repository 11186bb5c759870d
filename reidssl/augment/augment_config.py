"""Settings of the augmentations, importable without torch."""

from dataclasses import dataclass, field

from reidssl.checks import at_least, channel_statistics, height_and_width, increasing, within

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class MultiCropConfig:
    """Settings of the multi-crop augmentation. The defaults are those of the released recipe. Strengths are as in torchvision."""

    global_size: tuple[int, int] = (256, 128)
    """(height, width) in pixels of the two global crops."""
    local_size: tuple[int, int] = (128, 64)
    """(height, width) in pixels of the local crops."""
    num_local: int = 8
    """Number of local crops; with 0 there are only the two global crops."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of the image's area in a global crop."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Smallest and largest share of the image's area in a local crop."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height of the crops, in pixels of the image file. With the released 3/4..4/3, most global crops of a tall
    image are the same central crop, with two thirds of the height of a 2:1 image; 1/3..1/2 suits person images better."""
    flip: float = 0.5
    """Probability of mirroring a crop left to right."""
    jitter: float = 0.8
    """Probability of the color jitter."""
    brightness: float = 0.4
    """Strength s of the brightness jitter, in [0, 1]: factors are drawn from [1 - s, 1 + s]."""
    contrast: float = 0.4
    """Strength s of the contrast jitter, in [0, 1]: factors are drawn from [1 - s, 1 + s]."""
    saturation: float = 0.2
    """Strength s of the saturation jitter, in [0, 1]: factors are drawn from [1 - s, 1 + s]."""
    hue: float = 0.1
    """Strength s of the hue jitter, in [0, 0.5]: shifts are drawn from [-s, s], as fractions of the full color circle."""
    grayscale: float = 0.2
    """Probability of converting a crop to gray."""
    blur_global1: float = 1.0
    """Probability of blurring the first global crop."""
    blur_global2: float = 0.1
    """Probability of blurring the second global crop."""
    blur_local: float = 0.5
    """Probability of blurring a local crop."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the Gaussian blur in pixels of the crop."""
    solarize: float = 0.2
    """Probability of solarizing the second global crop."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Mean of each channel, subtracted at the end."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Standard deviation of each channel, divided by at the end."""

    def __post_init__(self) -> None:
        height_and_width(global_size=self.global_size, local_size=self.local_size)
        at_least(0, num_local=self.num_local)
        increasing("(0, 1]", global_scale=self.global_scale, local_scale=self.local_scale)
        increasing("(0, inf)", aspect=self.aspect, blur_sigma=self.blur_sigma)
        within(
            "[0, 1]",
            flip=self.flip,
            jitter=self.jitter,
            grayscale=self.grayscale,
            blur_global1=self.blur_global1,
            blur_global2=self.blur_global2,
            blur_local=self.blur_local,
            solarize=self.solarize,
        )
        within("[0, 1]", brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        within("[0, 0.5]", hue=self.hue)
        channel_statistics(self.mean, self.std)


@dataclass(kw_only=True)
class ReidAugmentConfig:
    """Settings of the fine-tuning augmentation. The defaults are those of the released recipe."""

    image_size: tuple[int, int] = (256, 128)
    """(height, width) in pixels of the result. Images of another size are resized first (bicubic)."""
    flip: float = 0.5
    """Probability of mirroring an image left to right."""
    pad: int = 10
    """Number of black pixels added on every side before a random crop of `image_size`."""
    erasing: float = 0.5
    """Probability of erasing a rectangle (Random Erasing, arXiv 1708.04896)."""
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the image's area in the rectangle."""
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Range of height / width of the rectangle."""
    erasing_log_aspect: bool = True
    """Draw height / width log-uniformly. false: uniformly, which gives more tall rectangles than wide ones."""
    erasing_noise: bool = True
    """Fill the rectangle with standard normal noise (after normalization). false: fill it with `erasing_value`."""
    erasing_value: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Value of each channel after normalization that fills the rectangle if erasing_noise=false; zeros are the mean color."""
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Mean of each channel, subtracted at the end."""
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Standard deviation of each channel, divided by at the end."""

    def __post_init__(self) -> None:
        height_and_width(image_size=self.image_size)
        within("[0, 1]", flip=self.flip, erasing=self.erasing)
        at_least(0, pad=self.pad)
        increasing("(0, 1]", erasing_area=self.erasing_area)
        increasing("(0, inf)", erasing_aspect=self.erasing_aspect)
        if len(self.erasing_value) != 3:
            raise ValueError(f"erasing_value must have one value for each of the 3 channels: got {list(self.erasing_value)}")
        channel_statistics(self.mean, self.std)
