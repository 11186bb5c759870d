"""Settings of the backbone and of the jigsaw branch, importable without torch."""

from dataclasses import dataclass

from reidssl.checks import at_least, one_of, positive, within

STEMS = ("ics", "patch")


@dataclass(kw_only=True)
class VitConfig:
    """Configuration of a backbone, saved in the header of its checkpoints. The default is ViT-S with the ICS stem."""

    width: int = 384
    """Embedding width D: 192 for ViT-Ti, 384 for ViT-S, 768 for ViT-B, 1024 for ViT-L."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 6
    """Attention heads; must divide width."""
    mlp_ratio: float = 4.0
    """Hidden width of each block's MLP, as a multiple of width."""
    patch_size: int = 16
    """Side of a patch in pixels; even for the ics stem."""
    stride: int = 0
    """Distance between patches in pixels. Patches overlap if it is smaller than patch_size. 0 means patch_size."""
    image_size: tuple[int, int] = (256, 128)
    """(height, width) in pixels for which the position embeddings are made. They are interpolated for images of other sizes."""
    stem: str = "ics"
    """"ics" (IBN convolution stem) or "patch" (one linear projection of each patch)."""
    stem_width: int = 64
    """Number of channels inside the ics stem; even."""
    drop_path: float = 0.0
    """Drop path (stochastic depth) rate of the last block. The rate rises linearly from 0 in the first block."""
    gem_pooling: bool = False
    """Add the generalized mean (GeM, exponent 3) of the patch tokens to the class token."""
    num_cameras: int = 0
    """Number of camera embeddings. Each is learned and added to every token of its camera's images. 0: no camera embeddings."""
    camera_weight: float = 3.0
    """Factor of the camera embedding before it is added to the tokens."""
    layer_scale: float = 0.0
    """Initial value of LayerScale, a learned factor per channel of every residual branch (CaiT, DINOv2). 0: no LayerScale."""
    norm_eps: float = 1e-6
    """Epsilon of the layer norms. Hugging Face's ViTs use 1e-12."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, heads=self.heads, patch_size=self.patch_size, stem_width=self.stem_width)
        at_least(0, num_cameras=self.num_cameras, layer_scale=self.layer_scale)
        positive(mlp_ratio=self.mlp_ratio, norm_eps=self.norm_eps)
        within("[0, 1)", drop_path=self.drop_path)
        one_of(STEMS, stem=self.stem)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: got width {self.width} and {self.heads} heads")
        if not 0 <= self.stride <= self.patch_size:
            raise ValueError(f"stride must be in [0, patch_size = {self.patch_size}]: got {self.stride}")
        if self.stem == "ics" and (self.patch_size % 2 or self.stride % 2):
            raise ValueError(f"patch_size and stride must be even for stem=ics: got {self.patch_size} and {self.stride}")
        if self.stem == "ics" and self.stem_width % 2:
            raise ValueError(f"stem_width must be even: got {self.stem_width}")
        self.image_size = (int(self.image_size[0]), int(self.image_size[1]))  # JSON and YAML give lists
        try:
            self.grid(*self.image_size)
        except ValueError as error:
            raise ValueError(f"image_size does not fit: {error}") from None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the grid of patches for an image of this size. Raises ValueError if the size does not fit.

        With overlapping patches (stride < patch_size), fewer than `stride` pixels at the bottom and right may stay unused.
        Example: the published 256 x 128 with stride 12 gives 21 x 10.
        """
        stride = self.stride or self.patch_size
        overlapping = stride < self.patch_size
        for size in (height, width):
            if size < self.patch_size or (not overlapping and size % stride):
                raise ValueError(
                    f"an image of {height} x {width} (height x width) cannot be cut into patches of "
                    f"{self.patch_size} every {stride} pixels: each side must be "
                    + (f"at least {self.patch_size}" if overlapping else f"a multiple of {stride}")
                )
            if self.stem == "ics" and size % 2:
                raise ValueError(f"the ics stem halves the image, so both sides must be even: got {height} x {width}")
        return (height - self.patch_size) // stride + 1, (width - self.patch_size) // stride + 1


@dataclass(kw_only=True)
class JigsawConfig:
    """The jigsaw patch module (JPM) of TransReID (arXiv 2102.04378): local features from shifted and shuffled patches.

    It is saved in the header of the models that have it. The defaults other than `parts` are the published ones.
    """

    parts: int = 0
    """Number of local features, each with its own neck and classifier; 4 as published. 0: no local features."""
    shift: int = 5
    """Patches move by shift - 1 places before they are shuffled (the released code counts the class token). 1: not at all."""
    groups: int = 2
    """Groups whose patches are interleaved."""

    def __post_init__(self) -> None:
        at_least(0, "(no local features)", parts=self.parts)
        at_least(1, shift=self.shift, groups=self.groups)

    def check(self, num_patches: int) -> None:
        """Raise ValueError if this number of patches cannot be shifted, shuffled and divided so."""
        if not self.parts:
            return
        for name, value in (("parts", self.parts), ("shift", self.shift)):
            if value > num_patches:
                raise ValueError(f"{name} must be at most {num_patches}, the number of patches: got {value}")
        if -num_patches % self.groups > 1:
            raise ValueError(
                f"groups must divide the number of patches, {num_patches}, or {num_patches + 1} (one is repeated): "
                f"got {self.groups}"
            )
