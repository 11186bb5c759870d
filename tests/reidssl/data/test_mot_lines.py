import numpy as np
import pytest

from reidssl.data.mot import CropConfig, select
from reidssl.data.mot_lines import parse_lines

TEXT = """# frame, track, box, score
3, 7, 10, 20, 30, 60, 0.9, -1, -1, -1
1,-1,0,0,5.5,6.5,2.25

1 4 1 2 3 4
"""
GOOD = "1,1,20,20,60,120,1,1,1.0\n"


def test_parses_and_sorts_by_frame_keeping_the_files_order_within():
    found, form, aside = parse_lines("\ufeff" + TEXT.replace("\n", "\r\n"), CropConfig())
    assert found.frames.tolist() == [1, 1, 3] and found.frames.dtype == np.int64
    assert found.tracks.tolist() == [-1, 4, 7]
    assert found.boxes.tolist() == [[0, 0, 5.5, 6.5], [1, 2, 3, 4], [10, 20, 30, 60]]
    assert found.scores.tolist() == [2.25, 1.0, 0.9]
    assert [found.in_frame(n).tolist() for n in (1, 2, 3, 4)] == [[0, 1], [], [2], []]
    assert (form, aside) == ("detections", [])


def test_an_empty_file_has_no_detections():
    found = parse_lines("\n# nothing\n", CropConfig()).detections
    assert found.boxes.shape == (0, 4) and found.in_frame(1).tolist() == []
    assert select(found, CropConfig()).frames.tolist() == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,,20,20,60,120,87", "track is empty (field 2): it must be a whole number from 0, or -1 for none"),
        (",1,20,20,60,120", "frame is empty (field 1)"),
        ("1,1,20,,60,120", "top is empty (field 4)"),
        ("1,2,3,4,5", "5 fields, 6 to 10 are allowed"),
        ("1,2,3,5,4,5,5,0,6,0,1", "11 fields, 6 to 10 are allowed"),
        ("1,2,3,4,five,6,1", "width must be a number of pixels within 1000000: got 'five' (field 5)"),
        ("1,2,nan,4,5,6,1", "left must be a number of pixels within 1000000: got 'nan'"),
        ("1,2,3,4,5,inf,1", "height must be a number of pixels"),
        ("1,2,3,1e300,5,6,1", "top must be a number of pixels"),
        ("1,2,3,4,5,6,-inf", "score must be a finite number, or left out: got '-inf'"),
        ("0,2,3,4,5,6,1", "frame must be a whole number in 1..2147483647: got '0'"),
        ("1.5,2,3,4,5,6,1", "frame must be a whole number"),
        ("3000000000,2,3,4,5,6,1", "frame must be a whole number in 1..2147483647: got '3000000000'"),
        ("1,2.5,3,4,5,6,1", "track must be a whole number from 0, or -1 for none: got '2.5'"),
        ("1,-2,3,4,5,6,1", "track must be a whole number from 0"),
        ("1,99999999999999999999,3,4,5,6,1", "track must be a whole number from 0"),
        ("1,1_0,3,4,5,6,1", "track must be a whole number from 0, or -1 for none: got '1_0'"),
        ("1,2,3,4,0,6,1", "width must be above 0: got 0"),
        ("1,2,3,4,5,-6,1", "height must be above 0: got -6"),
        ("frame,id,left,top,width,height,score", "frame must be a whole number"),
    ],
)
def test_a_bad_line_is_set_aside_by_number_field_and_value(line, reason):
    found, _, ((number, why),) = parse_lines("1,1,1,1,1,1,1\n" + line, CropConfig(form="detections"))
    assert number == 2 and why.startswith("line not understood: ") and reason in why
    assert found.tracks.tolist() == [1]
    with pytest.raises(ValueError, match=r"^line 2: .* \(2 of 3 lines are not understood\)"):
        parse_lines(f"1,1,1,1,1,1,1\n{line}\n{line}", CropConfig(form="detections"))


def test_ground_truth_keeps_visible_pedestrians_that_are_judged():
    text = GOOD + (
        "1,,20,20,60,120,87\n1,2,20,20,60,120,0,3,0.05\n1,3,20,20,60,120,,-1,-1,-1\n"
        "1,3000000000,20,20,60,120,1,1,1.0\n"
        "2,4,20,20,60,120,1,7,1\n2,5,20,20,60,120,1,1,0.1\n2,6,20,20,60,120,2,1,1\n2,7.0,20,20,60,120,1,1,-1\n"
    )
    found, form, aside = parse_lines(text, CropConfig())
    assert form == "ground_truth" and found.tracks.tolist() == [1, 3, 3_000_000_000, 7] and set(found.scores) == {1.0}
    assert [number for number, _ in aside] == [2, 3, 6, 7, 8]
    assert [reason.partition(":")[0] for _, reason in aside] == [
        "line not understood",
        "flag 0",
        "class 7",
        "hardly visible",
        "line not understood",
    ]
    assert "class 3" in aside[1][1] and "visibility 0.05 is below 0.3" in aside[1][1]
    assert "flag must be 0 or 1: got '2' (field 7)" in aside[4][1]
    found, _, aside = parse_lines(text, CropConfig(classes=[1, 7], min_visibility=0.1))
    assert found.tracks.tolist() == [1, 3, 3_000_000_000, 4, 5, 7]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (GOOD, "ground_truth"),
        ("1,-1,20,20,60,120,0.87,-1,-1,-1\n", "detections"),  # a detector's det.txt
        ("1,3,20,20,60,120,1,-1,-1,-1\n" * 2, "detections"),  # a tracker without scores
        ("1,3,20,20,60,120,1,-1,-1,-1\n1,4,20,20,60,120,0,-1,-1,-1\n", "ground_truth"),  # 2015
        ("1,-1,20,20,60,120,1,-1,-1,-1\n1,-1,20,20,60,120,0,-1,-1,-1\n", "detections"),
        ("1,3,20,20,60,120,0.5,-1,-1\n", "detections"),
        ("1,3,20,20,60,120,1,1.5,0.3\n", "detections"),
    ],
)
def test_the_form_is_told_by_most_lines_and_can_be_given(text, form):
    assert parse_lines(text, CropConfig()).form == form
    assert parse_lines(text, CropConfig(form="detections")).form == "detections"
    assert len(parse_lines("1,1,1,1,9,9,0,1,1\n" + GOOD, CropConfig(form="detections")).detections.frames) == 2


def test_flagged_boxes_of_2015_are_set_aside():
    found, _, aside = parse_lines("1,3,20,20,60,120,1,-1,-1,-1\n1,4,20,20,60,120,0,-1,-1,-1\n", CropConfig())
    assert found.tracks.tolist() == [3] and aside[0][0] == 2 and aside[0][1].startswith("flag 0: ")
