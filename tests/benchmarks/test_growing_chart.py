"""The chart of an autoscaling cluster, from a recorded file."""

import json
import re

import pytest

from benchmarks.growing import chart, lines_of, note, runs_of, steps

SAMPLES = [
    {"time": 100.0, "nodes": 0, "cpus": 0.0, "busy": 0.0},
    {"time": 103.0, "program": "score", "running": True},
    {"time": 110.0, "nodes": 2, "cpus": 4.0, "busy": 2.5},
    {"time": 120.0, "nodes": 2, "cpus": 4.0, "busy": 0.0},
    {"time": 121.0, "program": "score", "running": False},
    {"time": 124.0, "program": "tune", "running": True},
    {"time": 130.0, "nodes": 0, "cpus": 0.0, "busy": 0.0},
]


def test_lines_of_a_file_that_is_being_written(tmp_path):
    file = tmp_path / "timeline.jsonl"
    assert lines_of(file) == []
    note(file, program="score", running=True)
    with file.open("a") as opened:
        opened.write('{"time": 1.0, "no')
    (one,) = lines_of(file)
    assert (one["program"], one["running"]) == ("score", True) and one["time"] > 0


def test_values_hold_until_the_next_sample():
    samples = [one for one in SAMPLES if "nodes" in one]
    assert steps(samples, "cpus", 100.0) == [(0, 0), (10, 0), (10, 4), (30, 4), (30, 0), (30, 0)]


def test_a_program_without_an_end_lasts_until_the_end():
    assert runs_of(SAMPLES, 130.0) == [("score", 103.0, 121.0), ("tune", 124.0, 130.0)]
    twice = [{"time": t, "program": "score", "running": on} for t, on in ((1.0, True), (2.0, False), (3.0, True), (4.0, False))]
    assert runs_of(twice, 9.0) == [("score", 1.0, 2.0), ("score", 3.0, 4.0)]


def test_the_chart_names_the_programs_and_stays_inside():
    drawn = chart(SAMPLES)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn).groups())
    assert ">score<" in drawn and ">tune<" in drawn
    points = [tuple(map(float, pair.split(","))) for path in re.findall(r'points="([^"]+)"', drawn) for pair in path.split()]
    assert points and all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_a_name_without_room_behind_its_bar_stands_before_it():
    drawn = chart(SAMPLES)
    assert re.search(r"text-anchor:end[^>]*>tune<", drawn) and re.search(r"text-anchor:start[^>]*>score<", drawn)


def test_nothing_recorded(tmp_path):
    (tmp_path / "empty").write_text(json.dumps(SAMPLES[1]) + "\n")
    with pytest.raises(ValueError, match="nothing was recorded"):
        chart(lines_of(tmp_path / "empty"))
