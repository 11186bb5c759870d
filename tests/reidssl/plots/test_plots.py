"""Figures: well-formed, safe against hostile names, and correct for the given numbers."""

import base64
import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from platform.engine.report.plots.bars import grouped_bars, histogram
from platform.engine.report.plots.curves import MAX_POINTS, Series, line_chart, thin
from platform.engine.report.plots.picture_strip import attention_overlay, data_uri, encode, thumbnail
from platform.engine.report.plots.strips import Match, ranking_strip
from platform.engine.report.plots.svg import RIGHT, WRONG, axis, short_number

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</svg><script>alert("x")</script> & \' "'


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter(f"{SVG}text")]


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    found = []
    for element in parse(svg).iter(f"{SVG}polyline"):
        pairs = [pair.split(",") for pair in element.attrib["points"].split()]
        found.append([(float(x), float(y)) for x, y in pairs])
    return found


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0171), (-3.2, 4.1e6), (5, 5), (0, 0), (0.9961, 1.0)])
def test_axis_covers_its_range_with_few_round_ticks(low: float, high: float) -> None:
    found = axis(low, high, 100, 0)
    assert found.low <= low and found.high >= high and found.high > found.low
    assert 2 <= len(found.ticks) <= 8
    assert found(found.low) == 100 and found(found.high) == pytest.approx(0)
    steps = np.diff(found.ticks)
    assert np.allclose(steps, steps[0])


def test_axis_of_epochs_has_whole_ticks() -> None:
    assert axis(0, 3, 0, 1, snap=False, whole=True).ticks == (0, 1, 2, 3)


def test_axis_refuses_infinite_ends() -> None:
    with pytest.raises(ValueError, match="finite"):
        axis(0, math.inf, 0, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4_180_243, "4.18M"), (65536, "65.54k"), (0.996, "0.996"), (0, "0"), (0.00005, "5e-5"), (250, "250"), (-20000, "-20k")],
)
def test_short_number(value: float, expected: str) -> None:
    assert short_number(value) == expected


def test_line_chart_draws_every_series_where_its_values_are() -> None:
    svg = line_chart(
        [Series("full", [0, 10, 20], [0, 5, 10], 1), Series("selected", [0, 10, 20], [10, 5, 0], 2)],
        title="Loss",
        x_label="images seen",
    )
    rising, falling = polylines(svg)
    assert [y for _, y in rising] == sorted((y for _, y in rising), reverse=True)  # pixels grow downwards
    assert [y for _, y in falling] == [y for _, y in reversed(rising)]
    assert rising[1][1] == pytest.approx((rising[0][1] + rising[2][1]) / 2, abs=0.1)
    assert {"Loss", "full", "selected", "images seen"} <= set(texts(svg))


def test_line_chart_breaks_the_line_at_nan_and_refuses_nothing() -> None:
    svg = line_chart([Series("a", [0, 1, 2, 3, 4], [1, 2, math.nan, 2, 1])], title="t", x_label="x")
    assert [len(line) for line in polylines(svg)] == [2, 2]
    with pytest.raises(ValueError, match="nothing to draw in 't'"):
        line_chart([Series("a", [0], [math.nan])], title="t", x_label="x")
    with pytest.raises(ValueError, match="2 x values and 1 y"):
        Series("a", [0, 1], [1])


def test_reference_line_is_inside_the_frame() -> None:
    svg = line_chart([Series("a", [0, 1], [1, 2])], title="t", x_label="x", reference=("limit", 9.0))
    root = parse(svg)
    height = float(root.attrib["viewBox"].split()[3])
    dashed = [element for element in root.iter(f"{SVG}line") if "3 3" in element.attrib["style"]]
    assert len(dashed) == 1 and 0 < float(dashed[0].attrib["y1"]) < height
    assert "limit" in texts(svg)


def test_thinning_keeps_peaks_ends_and_gaps() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in enumerate(rng.normal(size=20_000))]
    points[12_345] = (12_345.0, 50.0)
    points[777] = (777.0, -50.0)
    kept = thin(points)
    assert len(kept) <= MAX_POINTS + 1
    assert (12_345.0, 50.0) in kept and (777.0, -50.0) in kept and kept[-1] == points[-1]
    assert kept == sorted(kept)
    gap = [(float(x), math.nan if 5_000 <= x < 10_000 else 1.0) for x in range(20_000)]
    assert any(math.isnan(y) for _, y in thin(gap))
    assert thin(points[:10]) == points[:10]


def test_histogram_counts_each_group_on_common_bins() -> None:
    rng = np.random.default_rng(1)
    people, planted = rng.uniform(0.5, 1.0, 300), rng.uniform(0.0, 0.6, 100)
    svg = histogram(
        {"people": people, "planted": planted},
        title="Scores",
        x_label="score",
        threshold=0.55,
        threshold_label="kept from 0.55",
        num_bins=10,
    )
    root = parse(svg)
    assert {"people (300)", "planted (100)", "kept from 0.55"} <= set(texts(svg))
    first, second = root.iter(f"{SVG}polygon")
    tops = [float(pair.split(",")[1]) for pair in first.attrib["points"].split()][1:-1]
    base, scale = max(tops), np.histogram(people, np.linspace(planted.min(), people.max(), 11))[0]
    drawn = np.array([base - y for y in tops[::2]])
    assert np.allclose(drawn / drawn.max(), scale / scale.max(), atol=2e-3)
    assert second.attrib["points"] != first.attrib["points"]
    with pytest.raises(ValueError, match="every group is empty"):
        histogram({"people": people[:0]}, title="t", x_label="x")


def test_histogram_of_equal_scores() -> None:
    assert "all (5)" in texts(histogram({"all": np.full(5, 0.7)}, title="t", x_label="x"))


def test_bars_are_as_high_as_their_values() -> None:
    svg = grouped_bars([("USL", [("random", 0.1, 0), ("full", 0.4, 1)]), ("UDA", [("full", 0.2, 1)])], title="mAP")
    heights = [float(element.attrib["height"]) for element in parse(svg).iter(f"{SVG}rect")]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.5) and heights[1] == pytest.approx(2 * heights[2], abs=0.5)
    assert {"10.0", "40.0", "20.0", "USL", "UDA"} <= set(texts(svg))
    with pytest.raises(ValueError, match="no values"):
        grouped_bars([], title="t")


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (64, 128)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "JPEG")
    return sink.getvalue()


def test_strip_frames_right_and_wrong_and_marks_both() -> None:
    svg = ranking_strip([Match("a.jpg", jpeg((200, 0, 0)), True), Match("b.jpg", None, False)])
    root = parse(svg)
    frames = [e.attrib["style"] for e in root.iter(f"{SVG}rect") if "stroke-width:3.5" in e.attrib["style"]]
    assert [RIGHT in frames[0], WRONG in frames[1], len(frames)] == [True, True, 2]
    marks = [e.attrib["d"] for e in root.iter(f"{SVG}path")]
    assert len(marks) == 2 and marks[0] != marks[1]
    images = [e.attrib["href"] for e in root.iter(f"{SVG}image")]
    assert len(images) == 1
    decoded = Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2])))
    assert decoded.size == (64, 128) and decoded.getpixel((10, 10))[0] > 180
    assert "no image" in texts(svg)
    titles = [e.text for e in root.iter(f"{SVG}title")]
    assert titles == ["1. right: a.jpg", "2. wrong: b.jpg"]


def test_hostile_names_stay_text() -> None:
    figures = [
        line_chart(
            [Series(HOSTILE, [0, 1], [0, 1]), Series("b", [0, 1], [0, 1])],
            title=HOSTILE,
            x_label=HOSTILE,
            reference=(HOSTILE, 0.5),
        ),
        histogram({HOSTILE: np.arange(3.0)}, title=HOSTILE, x_label=HOSTILE, threshold=1.0, threshold_label=HOSTILE),
        grouped_bars([(HOSTILE, [(HOSTILE, 0.5, 0)])], title=HOSTILE),
        ranking_strip([Match(HOSTILE, None, True)]),
    ]
    for figure in figures:
        assert not list(parse(figure).iter("script")) and not list(parse(figure).iter(f"{SVG}script"))
        assert "<script" not in figure


def test_thumbnail_shrinks_and_never_enlarges() -> None:
    small = Image.open(io.BytesIO(thumbnail(jpeg((0, 200, 0), (128, 256)), height=64)))
    assert small.size == (32, 64) and small.format == "JPEG"
    assert Image.open(io.BytesIO(thumbnail(jpeg((0, 200, 0), (32, 64)), height=128))).size == (32, 64)
    gray = io.BytesIO()
    Image.new("L", (20, 40)).save(gray, "PNG")
    assert Image.open(io.BytesIO(thumbnail(gray.getvalue()))).mode == "RGB"
    assert data_uri(b"abc") == "data:image/jpeg;base64,YWJj"
    assert Image.open(io.BytesIO(encode(np.zeros((8, 4, 3), np.uint8)))).size == (4, 8)


def test_attention_overlay_is_bright_where_attention_is() -> None:
    image = np.full((64, 32, 3), 120, np.uint8)
    attention = np.full((8, 4), 0.01)
    attention[1, 2] = 0.6
    overlay = attention_overlay(image, attention, height=128)
    assert overlay.shape == (128, 64, 3) and overlay.dtype == np.uint8
    lightness = overlay.astype(float).sum(-1).reshape(8, 16, 4, 16).mean(axis=(1, 3))
    assert np.unravel_index(lightness.argmax(), lightness.shape) == (1, 2)


def test_indifferent_attention_looks_indifferent() -> None:
    image = np.full((64, 32, 3), 120, np.uint8)
    even = attention_overlay(image, np.full((8, 4), 1 / 32)).astype(int)
    assert np.ptp(even, axis=(0, 1)).max() <= 1
    nothing = attention_overlay(image, np.zeros((8, 4)))
    assert np.ptp(nothing.astype(int), axis=(0, 1)).max() == 0
    for wrong in (np.full((8, 4), np.nan), np.zeros(32), -np.ones((8, 4))):
        with pytest.raises(ValueError, match="attention must be finite"):
            attention_overlay(image, wrong)
