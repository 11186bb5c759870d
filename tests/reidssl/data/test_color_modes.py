"""Every color mode and bit depth against a plain definition, level by level."""

import colorsys
import io
import struct

import numpy as np
import pytest
from PIL import Image

from reidssl.data.color_modes import BACKGROUND, CONVERSIONS, DecodeError, to_rgb
from reidssl.data.decode import check_image, decode_whole
from tests.reidssl.data.test_decode import chunk, encoded, png

RNG = np.random.default_rng(1)
GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = RNG.integers(0, 256, (16, 16, 3), np.uint8)
ALPHA = np.asarray(RNG.integers(0, 256, (16, 16)), np.uint8)
SIXTEEN = np.array([0, 1, 255, 256, 257, 4095, 32767, 32768, 65278, 65279, 65534, 65535], np.uint16).reshape(3, 4)


def as_gray(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, -1)


def composed(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The color over the background, rounded to the nearest level."""
    share = alpha[..., None].astype(float) / 255
    return np.rint(colors * share + np.asarray(BACKGROUND) * (1 - share)).astype(np.uint8)


def converted(image: Image.Image, sample_format: str = "") -> tuple[np.ndarray, list[str]]:
    rgb, done = to_rgb(image, sample_format)
    assert rgb.mode == "RGB" and rgb.size == image.size and set(done) <= set(CONVERSIONS)
    return np.asarray(rgb), done


def test_plain_modes():
    pairs = {
        "L": (Image.fromarray(GRAY), as_gray(GRAY)),
        "RGB": (Image.fromarray(COLORS), COLORS),
        "1": (Image.fromarray(GRAY > 99), as_gray(np.where(GRAY > 99, 255, 0))),
        "RGBX": (Image.merge("RGBX", [*Image.fromarray(COLORS).split(), Image.fromarray(ALPHA)]), COLORS),
    }
    for mode, (image, expected) in pairs.items():
        assert image.mode == mode
        found, done = converted(image)
        np.testing.assert_array_equal(found, expected)
        assert done == (["gray"] if mode in ("1", "L") else [])


def test_alpha_is_composed_over_the_background():
    gray, alpha = Image.fromarray(GRAY), Image.fromarray(ALPHA)
    straight = {"LA": Image.merge("LA", [gray, alpha]), "RGBA": Image.merge("RGBA", [*Image.fromarray(COLORS).split(), alpha])}
    for mode, image in straight.items():
        expected = composed(as_gray(GRAY) if mode == "LA" else COLORS, ALPHA)
        found, done = converted(image)
        assert np.abs(found.astype(int) - expected).max() <= 1 and "composed" in done
        premultiplied, done = converted(image.convert({"LA": "La", "RGBA": "RGBa"}[mode]))
        assert np.abs(premultiplied.astype(int) - expected).max() <= 2 and "composed" in done
        opaque = image.copy()
        opaque.putalpha(255)
        found, done = converted(opaque)
        np.testing.assert_array_equal(found, as_gray(GRAY) if mode == "LA" else COLORS)
        assert "composed" not in done
    hidden = Image.new("RGBA", (2, 2), (200, 10, 10, 0))  # a fully transparent pixel does not show its color
    assert (converted(hidden)[0] == BACKGROUND).all()


def test_palettes():
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    plain = Image.fromarray(GRAY, "L").copy()
    plain.putpalette(palette.tobytes())
    assert plain.mode == "P"
    found, done = converted(plain)
    np.testing.assert_array_equal(found, palette[GRAY])
    assert done == ["palette"]
    alphas = RNG.integers(0, 256, 256, np.uint8)
    for transparency, alpha in ((alphas.tobytes(), alphas[GRAY]), (7, np.where(GRAY == 7, 0, 255).astype(np.uint8))):
        data = encoded(plain, "PNG", transparency=transparency)
        expected = composed(palette[GRAY], alpha)
        assert np.abs(np.asarray(decode_whole(data)).astype(int) - expected).max() <= 1
        assert check_image(data).converted == ("palette", "composed")
    with_alpha = Image.fromarray(GRAY, "L").copy()
    with_alpha.putpalette(np.hstack([palette, alphas[:, None]]).tobytes(), "RGBA")
    assert np.abs(converted(with_alpha)[0].astype(int) - composed(palette[GRAY], alphas[GRAY])).max() <= 1
    pa = plain.convert("PA")
    pa.putalpha(Image.fromarray(ALPHA))
    assert np.abs(converted(pa)[0].astype(int) - composed(palette[GRAY], ALPHA)).max() <= 1


@pytest.mark.parametrize(
    ("depth", "color", "samples", "key", "clear"),
    [
        (8, 0, [0, 7, 9], 7, 1),
        (16, 0, [0, 1799, 1800], 1799, 1),
        (8, 2, [1, 5, 9], 5, 1),
        (16, 2, [256, 1280, 9000], 1280, 1),
        (1, 0, [0, 1, 1, 0, 0, 0, 0, 0], 0, 0),
        (2, 0, [0, 1, 2, 3], 2, 2),
        (4, 0, [3, 9], 9, 1),
    ],
)
def test_one_transparent_color_of_a_png(depth, color, samples, key, clear):
    bands = 3 if color == 2 else 1
    if depth < 8:
        row = sum(value << (8 - depth * (place + 1)) for place, value in enumerate(samples)).to_bytes(1, "big")
    else:
        row = b"".join(struct.pack(">H" if depth == 16 else "B", value) * bands for value in samples)
    data = png(len(samples), 1, depth, color, b"\0" + row, chunk(b"tRNS", struct.pack(">H", key) * bands))
    levels = [value * 255 // (2**depth - 1) if color == 0 else value >> (8 if depth == 16 else 0) for value in samples]
    expected = [255 if samples[place] == samples[clear] else level for place, level in enumerate(levels)]
    assert np.asarray(decode_whole(data))[0].tolist() == [[level] * 3 for level in expected]
    assert "composed" in check_image(data).converted


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bits_in_memory(mode):
    if mode == "I":
        image = Image.fromarray(SIXTEEN.astype(np.int32))
    else:
        stored = SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2")
        image = Image.frombytes(mode, (4, 3), stored.tobytes())
    assert image.mode == mode
    found, done = converted(image)
    np.testing.assert_array_equal(found, as_gray((SIXTEEN // 257).astype(np.uint8)))
    assert done == ["sixteen_bit", "gray"]


@pytest.mark.parametrize(
    "data",
    [
        encoded(SIXTEEN, "PNG"),
        encoded(SIXTEEN, "TIFF"),
        encoded(SIXTEEN, "PPM"),
        encoded(SIXTEEN.astype(np.int32), "TIFF"),
        encoded(Image.frombytes("I;16B", (4, 3), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
        encoded(SIXTEEN, "TIFF", compression="tiff_lzw"),
    ],
)
def test_sixteen_bit_files(data):
    np.testing.assert_array_equal(np.asarray(decode_whole(data)), as_gray((SIXTEEN // 257).astype(np.uint8)))
    assert check_image(data) == (3, 4, ("sixteen_bit", "gray"))


def test_a_sixteen_bit_picture_equals_the_same_in_eight_bits():
    sixteen = encoded(GRAY.astype(np.uint16) * 257, "PNG")
    np.testing.assert_array_equal(np.asarray(decode_whole(sixteen)), np.asarray(decode_whole(encoded(GRAY, "PNG"))))


@pytest.mark.parametrize("color", [2, 6])
def test_sixteen_bit_colors_lose_their_lower_byte(color):
    bands = 3 if color == 2 else 4
    levels = [[0, 300, 65535, 65535][:bands], [256, 32768, 65279, 65535][:bands]]
    row = b"".join(struct.pack(">H", value) for pixel in levels for value in pixel)
    data = png(2, 1, 16, color, b"\0" + row)
    assert np.asarray(decode_whole(data))[0].tolist() == [[value >> 8 for value in pixel[:3]] for pixel in levels]
    assert check_image(data).converted == ("sixteen_bit",)
    wide = b"P6 1 1 1023\n" + struct.pack(">3H", 0, 512, 1023)
    assert np.asarray(decode_whole(wide))[0, 0].tolist() == [0, round(512 * 255 / 1023), 255]
    assert "sixteen_bit" in check_image(wide).converted


def tiff(levels: np.ndarray, bits: int, photometric: int) -> bytes:
    """A TIFF 6.0 file: gray, little-endian, uncompressed, one strip. levels: packed rows, uint8 (H, bytes per row)."""
    height, width = levels.shape[0], levels.shape[1] * 8 // bits
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8 + 2 + 10 * 12 + 4),
        (277, 1),
        (278, height),
        (279, levels.size),
        (339, 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 10) + entries + struct.pack("<I", 0) + levels.tobytes()


def test_white_is_zero_and_twelve_bits():
    stored = SIXTEEN.astype("<u2").view(np.uint8)
    for photometric, expected in ((1, SIXTEEN // 257), (0, 255 - SIXTEEN // 257)):
        np.testing.assert_array_equal(np.asarray(decode_whole(tiff(stored, 16, photometric))), as_gray(expected.astype(np.uint8)))
    packed = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x00, 0x10]], np.uint8)  # 0 and 4095; 2048 and 16
    assert np.asarray(decode_whole(tiff(packed, 12, 1)))[..., 0].tolist() == [[0, 255], [2048 * 255 // 4095, 16 * 255 // 4095]]


@pytest.mark.parametrize(("low", "high"), [(0, 65536), (-1, 5), (2**31 - 1, 2**31 - 1)])
def test_integers_beyond_sixteen_bits_are_refused_with_their_range(low, high):
    with pytest.raises(DecodeError, match=f"gray levels from {low:,} to {high:,}: only levels of 16 bits, 0 to 65,535"):
        decode_whole(encoded(np.array([[low, high]], np.int32), "TIFF"))


def test_floating_point():
    unit = (GRAY / 255).astype(np.float32)
    for levels in (unit, GRAY.astype(np.float32)):
        found, done = converted(Image.fromarray(levels))
        np.testing.assert_array_equal(found, as_gray(GRAY))
        assert done == ["gray", "float"]
    np.testing.assert_array_equal(np.asarray(decode_whole(encoded(unit, "TIFF"))), as_gray(GRAY))
    for wrong in ([0.0, 1.02], [-0.1, 1.0], [0.0, 256.0], [np.nan, 0.5], [np.inf, 0.5]):
        with pytest.raises(DecodeError, match=r"floating-point levels from .* only 0 to 1 and 0 to 255 have a defined white"):
            to_rgb(Image.fromarray(np.array([wrong], np.float32)))


def test_cmyk():
    inks = RNG.integers(0, 256, (16, 16, 4), np.uint8)
    expected = np.rint((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255).astype(int)
    found, done = converted(Image.fromarray(inks, "CMYK"))
    assert np.abs(found.astype(int) - expected).max() <= 1 and done == ["cmyk"]
    flat = np.broadcast_to(np.array([200, 30, 90, 20], np.uint8), (16, 16, 4)).copy()
    data = encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=100)
    with Image.open(io.BytesIO(data)) as image:
        assert "adobe" in image.info  # Adobe stores the inks inverted
    wanted = [(255 - ink) * 235 / 255 for ink in (200, 30, 90)]
    assert np.abs(np.asarray(decode_whole(data))[8, 8] - np.array(wanted)).max() <= 3
    assert check_image(data).converted == ("cmyk",)


def test_other_color_spaces():
    y, cb, cr = (COLORS[..., band].astype(float) for band in range(3))
    ycc = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1)
    found, done = converted(Image.fromarray(COLORS, "YCbCr"))
    assert np.abs(found - np.clip(ycc, 0, 255)).max() <= 2 and done == ["color_space"]
    hsv = np.array([[[0, 255, 255], [85, 255, 255], [170, 255, 128], [0, 0, 77], [200, 90, 33]]], np.uint8)
    expected = [[255 * part for part in colorsys.hsv_to_rgb(*(pixel / 255))] for pixel in hsv[0].astype(float)]
    found, done = converted(Image.fromarray(hsv, "HSV"))
    assert np.abs(found[0] - np.array(expected)).max() <= 3 and done == ["color_space"]
    lab = Image.new("LAB", (1, 1))
    white, black, red = (255, 128, 128), (0, 128, 128), (138, 209, 198)
    for stored, wanted in ((white, (255, 255, 255)), (black, (0, 0, 0)), (red, (255, 0, 0))):
        lab.putpixel((0, 0), stored)
        assert np.abs(converted(lab)[0][0, 0].astype(int) - wanted).max() <= 8
