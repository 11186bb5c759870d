"""Small pictures for a page: thumbnails, data URIs, and attention overlays."""

import base64
import io

import numpy as np
from PIL import Image

from reidssl.data.decode import decode_whole

# Color map from black through violet and orange to pale yellow. Its lightness is even, so it is readable without color.
_ANCHORS = np.array(
    [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]],
    np.float64,
)


def thumbnail(data: bytes, height: int = 128, quality: int = 85) -> bytes:
    """An encoded image (JPEG, PNG, ...) as an upright JPEG of at most `height` rows. It is never enlarged."""
    image = decode_whole(data)
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    return encode(np.asarray(image), quality)


def encode(image: np.ndarray, quality: int = 85) -> bytes:
    """Encode an image, uint8 (H, W, 3), as JPEG."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    """The bytes as a data: URI, so that the page needs no separate file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def attention_overlay(image: np.ndarray, attention: np.ndarray, height: int = 192) -> np.ndarray:
    """Attention as a heat map over a darkened gray copy of the image.

    Args:
        image: uint8 (H, W, 3).
        attention: float (rows, columns), at least 0: the share of each patch. The color scale runs from half the uniform share to
            the largest share, but at least to three times the uniform share, so that an almost uniform map stays dark.
        height: rows of the result; the width follows from the aspect ratio.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: attention is not finite, is negative or has a wrong shape.
    """
    if attention.ndim != 2 or attention.size == 0 or not np.isfinite(attention).all() or attention.min() < 0:
        raise ValueError(f"attention must be finite, not negative and (rows, columns): got shape {attention.shape}")
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    total = float(attention.sum())
    relative = attention * (attention.size / total) if total > 0 else np.zeros_like(attention)
    strength = (relative - 0.5) / (max(float(relative.max()), 3.0) - 0.5)
    smooth = Image.fromarray(strength.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0.0, 1.0)[..., None]
    gray = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BICUBIC)
    base = np.asarray(gray, np.float64)[..., None]
    opacity = 0.85 * heat**0.7
    return (base * 0.7 * (1 - opacity) + _colors(heat[..., 0]) * opacity).clip(0, 255).astype(np.uint8)


def _colors(values: np.ndarray) -> np.ndarray:
    """Colors of values in [0, 1] (H, W): RGB float (H, W, 3) in [0, 255]."""
    at = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, at, _ANCHORS[:, channel]) for channel in range(3)], axis=-1)
