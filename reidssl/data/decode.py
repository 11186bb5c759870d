"""Image decoding: encoded bytes -> upright RGB uint8, for any format in `FORMATS`, mode, bit depth and orientation.

color_modes.py describes the conversion of each mode and bit depth. EXIF orientation is applied; a broken or unknown orientation
counts as upright. For files with several frames, the first is used. Only the formats in `FORMATS` are opened, since Pillow runs
other programs for some other formats (Ghostscript for EPS).
"""

import io
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from reidssl.data.color_modes import DecodeError as DecodeError  # re-exported for callers of this module
from reidssl.data.color_modes import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Supported formats, by Pillow's names. JPEG includes MPO, the format of cameras that store further images in a JPEG."""
MAX_PIXELS = 32_000_000
LARGEST_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Number of pixels above which Pillow itself does not open an image."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITH_EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_FOREIGN = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"\x00\x00\x01\x00": "ICO",
}

# Warnings about damaged metadata do not concern the pixels, and `max_pixels` replaces Pillow's warning limit. The filters are
# global because catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings(
    "ignore", "(Possibly c|C)orrupt EXIF|Truncated File Read|Metadata Warning|Image appears to be a mal", category=UserWarning
)


class Checked(NamedTuple):
    """The result of `check_image`."""

    height: int
    """Height of the upright image in pixels."""
    width: int
    """Width of the upright image in pixels."""
    converted: tuple[str, ...]
    """Conversions made (keys of CONVERSIONS)."""


class DecodedBatch(NamedTuple):
    """The result of `decode_batch`."""

    images: np.ndarray
    """uint8 (B, 3, H, W), upright, resized. All pixels of an image that cannot be decoded are 128."""
    reasons: list[str]
    """For each image, the reason why it cannot be decoded, or ""."""
    shapes: np.ndarray
    """int32 (B, 2), height and width of each upright image before resizing; (H, W) for one that cannot be decoded."""


def decode_image(data: bytes, image_size: tuple[int, int], max_pixels: int = MAX_PIXELS, resize: str = "bicubic") -> np.ndarray:
    """Decode an image to uint8 (3, H, W), upright, resized to `image_size` (height, width). Raises DecodeError.

    resize: one of RESIZES.
    """
    return _resized(_decode(data, max_pixels, image_size).rgb, image_size, resize)


def decode_batch(
    data: Sequence[bytes],
    image_size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    threads: int = 1,
    resize: str = "bicubic",
) -> DecodedBatch:
    """Decode images, upright and resized to `image_size` (height, width). resize: one of RESIZES."""
    images = np.full((len(data), 3, *image_size), 128, np.uint8)
    shapes = np.tile(np.asarray(image_size, np.int32), (len(data), 1))

    def one(place: int) -> str:
        try:
            found = _decode(data[place], max_pixels, image_size)
            images[place], shapes[place] = _resized(found.rgb, image_size, resize), found.shape
        except DecodeError as error:
            return str(error)
        return ""

    if threads == 1:
        return DecodedBatch(images, [one(place) for place in range(len(data))], shapes)
    with ThreadPoolExecutor(threads) as pool:
        return DecodedBatch(images, list(pool.map(one, range(len(data)))), shapes)


def decode_whole(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to an upright RGB image in its original size. Raises DecodeError."""
    return _decode(data, max_pixels, None).rgb


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Checked:
    """Decode every pixel and verify the checksums of PNG files. Raises DecodeError if the image is damaged."""
    with _open(data, max_pixels) as image:
        frames = _has_frames(image)
        if image.format == "PNG":
            try:
                image.verify()
            except Exception as error:
                raise _error(error) from None
    found = _decode(data, max_pixels, None)
    return Checked(*found.shape, (*found.converted, *["first_frame"] * frames))


def _resized(rgb: Image.Image, image_size: tuple[int, int], resize: str) -> np.ndarray:
    """The pixels uint8 (3, H, W) of an image, resized to `image_size` (height, width)."""
    size = (image_size[1], image_size[0])
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling[resize.upper()])
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


class _Upright(NamedTuple):
    """The result of `_decode`."""

    rgb: Image.Image
    shape: tuple[int, int]
    """Height and width in the file, upright. Those of `rgb`, unless it was decoded at a reduced size."""
    converted: list[str]


def _decode(data: bytes, max_pixels: int, near: tuple[int, int] | None) -> _Upright:
    """The upright RGB image and the conversions made.

    near: (height, width). A JPEG may be decoded at a reduced size for speed, but not smaller than this. None: full size.
    """
    with _open(data, max_pixels) as image:
        try:
            is_tiff = image.format == "TIFF"  # Pillow turns these by itself
            orientation = _orientation(image)
            whole, reduced = image.size, False
            if near:
                height, width = near[::-1] if orientation >= 5 else near
                image.draft("RGB", (width, height))
                reduced = image.size != whole
            sample_format = _sample_format(image)
            image.load()
            if image.format == "PNG":
                orientation = _orientation(image)  # in a PNG, the EXIF data may come after the pixels
            rgb, done = to_rgb(image, sample_format)
        except DecodeError:
            raise
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on damaged files
            raise _error(error) from None
    if orientation in _TURNS:
        done.append("rotated")
        rgb = rgb if is_tiff else rgb.transpose(_TURNS[orientation])
    upright = whole[::-1] if orientation >= 5 else whole
    width, height = upright if reduced else rgb.size  # only JPEGs are reduced; only they have all of their metadata first
    return _Upright(rgb, (height, width), done)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image and read its header only. Raises DecodeError if it has too many pixels, before any are decoded."""
    if not data:
        raise DecodeError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        seen = f"{int(found[1]):,}" if found else f"more than {LARGEST_MAX_PIXELS:,}"
        raise DecodeError(f"{seen} pixels are more than max_pixels allows ({max_pixels:,})") from None
    except UnidentifiedImageError:
        raise DecodeError(_unknown(data)) from None
    except Exception as error:
        raise _error(error) from None
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        image.close()
        raise DecodeError(
            f"{height:,} x {width:,} = {height * width:,} pixels are "
            + (f"more than max_pixels allows ({max_pixels:,})" if width * height > 0 else "no image")
        )
    return image


def _unknown(data: bytes) -> str:
    known = f"not an image in a known format ({', '.join(FORMATS)})"
    start = data[:32].lstrip()
    name = next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), "")
    if data[4:8] == b"ftyp":
        name = (
            "AVIF"
            if data[8:12] in (b"avif", b"avis")
            else "HEIC"
            if data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
            else "MPEG-4 video"
        )
    return f"{name} is not supported: convert it to JPEG or PNG; {known}" if name else known


def _error(error: Exception) -> DecodeError:
    lines = str(error).split("\n")
    return DecodeError(lines[0][:200] or type(error).__name__)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if it is missing or cannot be read."""
    try:
        if image.format == "TIFF":
            value: Any = image.tag_v2.get(ExifTags.Base.Orientation, 1)  # type: ignore[attr-defined]
        elif any(name in image.info for name in _WITH_EXIF):
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        else:
            return 1
    except Exception:  # a broken EXIF block must not make the image unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _sample_format(image: Image.Image) -> str:
    """Storage format of the samples, such as "RGB;16B", from the arguments of Pillow's codec.

    Must be called before the pixels are loaded.
    """
    tiles = getattr(image, "tile", [])
    if not tiles:
        return ""
    codec, _, _, arguments = tiles[0]
    wide = codec == "ppm" and any(isinstance(value, int) and value > 255 for value in arguments)
    return f"{arguments}{';16' if wide else ''}"


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame does not affect the first
        return True
