"""Small pictures for a page: thumbnails, data URIs, and attention laid over an image."""

import base64
import io

import numpy as np
from PIL import Image

from reidssl.data.decode import decode_whole

# From black through violet and orange to pale yellow, even in lightness: readable without color, too.
_ANCHORS = np.array(
    [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]],
    np.float64,
)


def thumbnail(data: bytes, height: int = 128, quality: int = 85) -> bytes:
    """JPEG bytes of an encoded image (JPEG, PNG, ...), upright, scaled down to at most `height` rows; never scaled up."""
    image = decode_whole(data)
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    return encode(np.asarray(image), quality)


def encode(image: np.ndarray, quality: int = 85) -> bytes:
    """uint8 (H, W, 3) -> JPEG bytes."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    """The bytes as a URI that needs no file beside the page."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def attention_overlay(image: np.ndarray, attention: np.ndarray, height: int = 192) -> np.ndarray:
    """Attention as heat over a darkened gray copy of the image.

    Args:
        image: uint8 (H, W, 3).
        attention: float (rows, columns), at least 0: each patch's share. The scale runs from half the even share to the
            map's largest one, but at least to three times the even share, so that an indifferent map looks indifferent.
        height: rows of the result; the width follows.

    Returns:
        uint8 (height, width, 3).
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
    """[0, 1] (H, W) -> RGB in [0, 255] (H, W, 3)."""
    at = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, at, _ANCHORS[:, channel]) for channel in range(3)], axis=-1)
