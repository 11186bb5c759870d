import numpy as np
import pytest

from reidssl.data.mot import CropConfig, crops_of, select
from reidssl.data.mot_lines import parse_lines


def ramp(height: int = 120, width: int = 80) -> np.ndarray:
    """An image whose pixel values encode their row and column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1)


def any_size(**settings) -> CropConfig:
    return CropConfig(**{"min_height": 1, "min_width": 1, **settings})


def test_select_by_score_and_stride_over_the_frames_that_have_detections():
    text = "\n".join(f"{frame},1,0,0,9,9,{frame / 10}" for frame in (1, 3, 5, 7, 9, 9))
    found = parse_lines(text, CropConfig()).detections
    assert select(found, CropConfig(frame_stride=2)).frames.tolist() == [1, 5, 9, 9]
    assert select(found, CropConfig(min_score=0.5)).frames.tolist() == [5, 7, 9, 9]
    # min_score does not change which frames the stride takes
    assert select(found, CropConfig(frame_stride=2, min_score=0.2)).frames.tolist() == [5, 9, 9]


def test_a_crop_is_exactly_the_box():
    ((row, crop),) = crops_of(ramp(), np.array([[10, 20, 30, 60]]), any_size())
    assert row == 0
    np.testing.assert_array_equal(crop, ramp()[20:80, 10:40])


def test_sizes_from_yaml_are_lists_and_work_as_well():
    (default,) = crops_of(ramp(), np.array([[10, 20, 30, 60]]), any_size(recorded_size=[0, 0]))
    assert default[1].shape == (60, 30, 3)
    assert any_size(recorded_size=[240, 40]) == any_size(recorded_size=(240, 40))


def test_fractions_round_outwards():
    ((_, crop),) = crops_of(ramp(), np.array([[10.6, 20.4, 2.0, 3.0]]), any_size())
    np.testing.assert_array_equal(crop, ramp()[20:24, 10:13])


def test_boxes_are_scaled_from_the_recorded_resolution():
    config = any_size(recorded_size=(240, 40))  # twice the height, half the width of the video
    ((_, crop),) = crops_of(ramp(), np.array([[5, 40, 15, 120]]), config)
    np.testing.assert_array_equal(crop, ramp()[20:80, 10:40])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-10, -20, 30, 60], (slice(0, 40), slice(0, 20))),
        ([60, 80, 30, 60], (slice(80, 120), slice(60, 80))),
        ([-5, -5, 500, 500], (slice(0, 120), slice(0, 80))),
    ],
)
def test_boxes_over_the_edge_are_clipped(box, expected):
    ((_, crop),) = crops_of(ramp(), np.array([box]), any_size(min_visible=0.0))
    np.testing.assert_array_equal(crop, ramp()[expected])


@pytest.mark.parametrize(
    "box",
    [[-40, 0, 30, 60], [80, 0, 30, 60], [0, 120, 30, 60], [5, 5, 0, 60], [5, 5, 30, -3], [-20, 0, 30, 60]],
)
def test_boxes_outside_empty_or_mostly_hidden_give_no_crop(box):
    assert list(crops_of(ramp(), np.array([box]), any_size())) == []


def test_small_boxes_are_dropped_and_rows_keep_their_numbers():
    boxes = np.array([[0, 0, 10, 60], [0, 0, 30, 20], [0, 0, 30, 60]])
    found = list(crops_of(ramp(), boxes, CropConfig(min_height=40, min_width=20)))
    assert [(row, crop.shape) for row, crop in found] == [(2, (60, 30, 3))]


def test_a_crop_does_not_keep_its_frame():
    image = ramp()
    ((_, crop),) = crops_of(image, np.array([[0, 0, 80, 120]]), any_size())
    assert not np.shares_memory(crop, image) and crop.base is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recorded_size", (0, 5)),
        ("min_height", 0),
        ("min_width", 0),
        ("frame_stride", 0),
        ("min_visible", 1.5),
        ("min_visibility", -0.1),
        ("form", "gt"),
        ("classes", []),
        ("min_score", float("nan")),
    ],
)
def test_bad_settings_name_their_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be .*got"):
        CropConfig(**{field: value})
