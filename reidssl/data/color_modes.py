"""Conversion of images of any Pillow mode to RGB uint8.

Resulting levels in [0, 255], by mode:
  1, L, RGB         unchanged; gray is copied to all three channels
  P                 the colors of the palette
  LA, La, PA, RGBA, RGBa, or with a transparent color: composed over `BACKGROUND`
  16-bit gray       (I;16, I;16L, I;16B, I;16N, I) level // 257. 12-bit gray: level * 255 // 4095. Mode I with levels outside
                    [0, 65535] is rejected, because the level of white is unknown
  16-bit RGB        level >> 8 (done by Pillow)
  F                 if the largest level is at most 1, 1 is white; if it is in [16, 255], 255 is white; else rejected
  CMYK              (255 - c)(255 - k) / 255. JPEG stores inks inverted, and is read as Adobe and all browsers do
  YCbCr, HSV, LAB   by their definition (Lab: D50, to sRGB)
  RGBX              X is ignored
Embedded color profiles are not applied.
"""

import numpy as np
from PIL import Image

BACKGROUND = (255, 255, 255)
CONVERSIONS = {
    "rotated": "turned upright by EXIF",
    "sixteen_bit": "scaled from 16 bits",
    "float": "scaled from floating point",
    "composed": "composed over white",
    "cmyk": "converted from CMYK",
    "color_space": "converted from YCbCr, HSV or Lab",
    "palette": "with a palette",
    "gray": "gray",
    "first_frame": "the first of several frames",
}
"""Kinds of conversion that `check_image` reports, with a description for summaries."""
_PHOTOMETRIC = 262  # TIFF's PhotometricInterpretation; 0: white is zero


class DecodeError(ValueError):
    """An image cannot be decoded. The message is the reason, on one line."""


def to_rgb(image: Image.Image, sample_format: str = "") -> tuple[Image.Image, list[str]]:
    """Convert a Pillow image of any mode to RGB. Returns the image and the conversions made (keys of CONVERSIONS).

    sample_format: Pillow's name for the storage format of the samples ("RGB;16B", "I;12", "L;4"), or "" if unknown. Raises
    DecodeError if it is not defined which level is white.
    """
    mode, done = image.mode, []
    if ";16" in sample_format or mode.startswith("I"):
        done.append("sixteen_bit")
    if mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"):
        done.append("gray")
    if mode in ("P", "PA"):
        done.append("palette")
    if mode == "RGB" and "transparency" not in image.info:
        return image, done
    alpha: Image.Image | None = None
    if mode.startswith("I"):
        levels = np.asarray(image)
        white = 4095 if ";12" in sample_format else 65535
        tags = getattr(image, "tag_v2", {})
        rgb = _from_integers(levels, white, inverted=tags.get(_PHOTOMETRIC) == 0)  # Pillow inverts 1 and 8 bits only
        alpha = _keyed(image, levels, sample_format)
    elif mode == "F":
        rgb = _from_floats(np.asarray(image))
        done.append("float")
    elif mode in ("1", "L", "RGB"):
        rgb = image.convert("RGB")
        alpha = _keyed(image, np.asarray(image.convert("L") if mode == "1" else image), sample_format)
    elif image.has_transparency_data:
        straight = {"La": "LA"}.get(mode, "RGBA")  # La and RGBa are premultiplied
        image = image.convert(straight)
        rgb, alpha = image.convert("RGB"), image.getchannel("A")
    else:
        rgb = image.convert("RGB")
        done += ["cmyk"] * (mode == "CMYK") + ["color_space"] * (mode in ("YCbCr", "HSV", "LAB"))
    if alpha is not None and alpha.getextrema()[0] != 255:
        done.append("composed")
        canvas = Image.new("RGB", rgb.size, BACKGROUND)
        canvas.paste(rgb, mask=alpha)
        rgb = canvas
    return rgb, done


def _keyed(image: Image.Image, levels: np.ndarray, sample_format: str) -> Image.Image | None:
    """Opacity (mode L) of an image in which one color is transparent; None if there is no such color."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        clear = (levels == np.asarray(key) >> (8 if ";16" in sample_format else 0)).all(axis=-1)
    elif image.mode != "RGB" and isinstance(key, int):
        # Pillow stretches the levels of 2 and 4 bits, but not the key.
        clear = levels == key * (85 if "L;2" in sample_format else 17 if "L;4" in sample_format else 1)
    else:
        return None
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def _from_integers(levels: np.ndarray, white: int, inverted: bool) -> Image.Image:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > white:
        raise DecodeError(
            f"gray levels from {low:,} to {high:,}: only levels of {white.bit_length()} bits, 0 to {white:,}, "
            "have a defined white"
        )
    scaled = (levels.astype(np.int64) * 255 // white).astype(np.uint8)
    return _gray(255 - scaled if inverted else scaled)


def _from_floats(levels: np.ndarray) -> Image.Image:
    low, high = float(levels.min()), float(levels.max())
    if not (0 <= low <= high <= 1 or (low >= 0 and 16 <= high <= 255)):
        raise DecodeError(f"floating-point levels from {low:g} to {high:g}: only 0 to 1 and 0 to 255 have a defined white")
    return _gray(np.rint(levels * (255 if high <= 1 else 1)).astype(np.uint8))


def _gray(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels).convert("RGB")
