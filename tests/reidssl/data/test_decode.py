"""The decoder: orientation, limits, formats, damage. Every image is made here and compared with a plain definition."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from reidssl.data.decode import (
    LARGEST_MAX_PIXELS,
    MAX_PIXELS,
    DecodeError,
    check_image,
    decode_batch,
    decode_image,
    decode_whole,
)

# Pillow warns of some of the files that are broken on purpose here.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}:UserWarning") for text in ("Truncated File Read", "Corrupt EXIF data")
] + [pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")]

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (8, 5, 3), np.uint8)).resize((40, 64), Image.Resampling.BICUBIC))
# EXIF orientation (CIPA DC-008) -> how to turn the stored picture upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def encoded(pixels: np.ndarray | Image.Image, image_format: str, **options) -> bytes:
    sink = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(sink, image_format, **options)
    return sink.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file. color: 0 gray, 2 RGB, 6 RGBA; rows: each with its filter byte; extra: chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def whole(data: bytes) -> np.ndarray:
    return np.asarray(decode_whole(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("image_size", [(64, 40), (32, 20), (100, 50), (7, 5)])
def test_ordinary_images_are_what_pillow_alone_makes_of_them(image_format, image_size):
    data = encoded(SMOOTH, image_format)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", image_size[::-1])
        expected = image.convert("RGB").resize(image_size[::-1], Image.Resampling.BICUBIC)
    found = decode_image(data, image_size)
    assert found.shape == (3, *image_size) and found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(image_format, orientation):
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95} if image_format == "JPEG" else {}
    stored = whole(encoded(SMOOTH, image_format, **options))
    data = encoded(SMOOTH, image_format, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(whole(data), expected)
    checked = check_image(data)
    assert (checked.height, checked.width) == expected.shape[:2] == ((64, 40) if orientation < 5 else (40, 64))
    assert ("rotated" in checked.converted) == (orientation > 1)
    small = decode_image(data, (expected.shape[0] // 2, expected.shape[1] // 2)).astype(int)  # a JPEG is decoded at reduced size
    mean = expected.reshape(expected.shape[0] // 2, 2, expected.shape[1] // 2, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(small - mean).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_unknown_orientation_is_upright(orientation):
    data = encoded(SMOOTH, "PNG", exif=exif(orientation))
    np.testing.assert_array_equal(whole(data), SMOOTH)
    assert check_image(data).converted == ()


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0junk",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06",
        b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0\xff\xff\xff\xff",
    ],
)
def test_a_broken_exif_block_never_fails_the_image(block):
    for image_format in ("JPEG", "PNG", "WEBP"):
        options = {"exif": block} | ({"lossless": True} if image_format == "WEBP" else {})
        assert check_image(encoded(SMOOTH, image_format, **options))[:2] == (64, 40)


def test_exif_behind_the_pixels_of_a_png():
    data = encoded(SMOOTH, "PNG")
    found = exif(6).tobytes()[6:]
    late = data[:-12] + chunk(b"eXIf", found) + data[-12:]
    np.testing.assert_array_equal(whole(late), np.rot90(SMOOTH, -1))
    assert check_image(late) == (40, 64, ("rotated",))


def test_too_many_pixels_are_refused_by_the_header():
    for side, text in (
        (12_000, "12,000 x 12,000 = 144,000,000 pixels are more than max_pixels allows (32,000,000)"),
        (30_000, "900,000,000 pixels are more than max_pixels allows (32,000,000)"),
    ):  # Pillow's own limit
        data = png(side, side, 8, 0, b"")
        for decode in (check_image, decode_whole, lambda data: decode_image(data, (64, 32))):
            with pytest.raises(DecodeError) as caught:
                decode(data)
            assert str(caught.value) == text
    assert check_image(encoded(SMOOTH, "PNG"), max_pixels=64 * 40)[:2] == (64, 40)
    with pytest.raises(DecodeError, match=r"64 x 40 = 2,560 pixels are more than max_pixels allows \(2,559\)"):
        check_image(encoded(SMOOTH, "JPEG"), max_pixels=64 * 40 - 1)
    assert MAX_PIXELS <= LARGEST_MAX_PIXELS


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(100 << 20))),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20))),
    ],
)
def test_a_bomb_beside_the_pixels_is_not_unpacked(extra):
    with pytest.raises(DecodeError, match="too large"):
        check_image(png(1, 1, 8, 0, b"\0\7", extra))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty file"),
        (b"junk", r"not an image in a known format \(JPEG, PNG, WEBP, BMP, TIFF, GIF, PPM\)"),
        (encoded(SMOOTH, "JPEG")[:-300], "truncated"),
        (encoded(SMOOTH, "PNG")[:-300], "[Tt]runcated"),
        (encoded(SMOOTH, "BMP")[:-300], "truncated"),
        (encoded(SMOOTH, "WEBP")[:-300], ""),
        (encoded(SMOOTH, "TIFF")[:-3000], ""),
        (png(0, 5, 8, 0, b""), ""),
        (b"P6 0 0 255\n", ""),
        (encoded(SMOOTH, "EPS"), "PostScript is not supported: convert it to JPEG or PNG"),
        (encoded(SMOOTH, "JPEG2000"), "JPEG 2000 is not supported"),
        (encoded(SMOOTH, "PDF"), "PDF is not supported"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC is not supported"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "HEIC is not supported"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF is not supported"),
        (b"<svg></svg>", "SVG is not supported"),
    ],
)
def test_what_cannot_be_decoded_says_why_in_one_line(data, text):
    with pytest.raises(DecodeError, match=text or None) as caught:
        check_image(data)
    assert "\n" not in str(caught.value) and str(caught.value)


def test_a_wrong_checksum_is_found():
    data = bytearray(encoded(SMOOTH, "PNG"))
    data[-20] ^= 1
    with pytest.raises(DecodeError):
        check_image(bytes(data))


@pytest.mark.parametrize(
    ("image_format", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {})]
)
def test_of_several_frames_the_first_is_taken(image_format, options):
    gray = np.repeat(SMOOTH[..., :1], 3, 2)
    data = encoded(gray, image_format, save_all=True, append_images=[Image.fromarray(255 - gray)], **options)
    assert np.abs(whole(data).astype(int) - gray).mean() < 4
    assert "first_frame" in check_image(data).converted
    assert "first_frame" not in check_image(encoded(gray, "JPEG" if image_format == "MPO" else image_format)).converted


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_says_which_images_are_broken(threads):
    data = [encoded(SMOOTH, "PNG"), b"junk", encoded(SMOOTH, "JPEG"), b""]
    images, reasons, shapes = decode_batch(data, (64, 40), threads=threads)
    assert [bool(reason) for reason in reasons] == [False, True, False, True] and reasons[3] == "empty file"
    np.testing.assert_array_equal(images[0], SMOOTH.transpose(2, 0, 1))
    assert (images[[1, 3]] == 128).all() and (images[2] == decode_image(data[2], (64, 40))).all()
    assert shapes.tolist() == [[*SMOOTH.shape[:2]], [64, 40]] * 2
    images, reasons, shapes = decode_batch([], (64, 40))
    assert images.shape == (0, 3, 64, 40) and reasons == [] and shapes.shape == (0, 2)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_batch_has_the_shapes_of_the_files(image_format, orientation):
    """The upright shape, also where a JPEG is decoded at a reduced size, whose sides are rounded."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.new("RGB", (201, 501)).save(sink, image_format, exif=exif)
    found = decode_batch([sink.getvalue()], (64, 32))
    assert found.shapes.tolist() == [[201, 501] if orientation == 6 else [501, 201]] and found.reasons == [""]


def test_no_warning_reaches_the_terminal():
    """Runs in its own process, because pytest captures warnings."""
    program = (
        "import sys; from reidssl.data.decode import check_image\ncheck_image(sys.stdin.buffer.read(), max_pixels=170_000_000)"
    )
    for data in (
        encoded(SMOOTH, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x02\0\x05\0\0\0\xff\xff\xff\xff"),
        encoded(Image.new("1", (10_000, 9_500)), "PNG"),
        encoded(Image.fromarray(SMOOTH).convert("P"), "PNG", transparency=b"\x80" * 256),
    ):
        ended = subprocess.run([sys.executable, "-W", "default", "-c", program], input=data, capture_output=True, timeout=60)
        assert ended.returncode == 0 and ended.stderr == b""
