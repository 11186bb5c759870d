"""The set to choose settings on has train people only, and each of them in one role."""

import subprocess
import sys

import pytest

from benchmarks.validation_split import FOLDERS, roles_of, split
from reidssl.data.market1501 import index
from reidssl.data.records import Record


@pytest.fixture
def small_set(tmp_path):
    """Ten people with two images in each of two cameras to train on, and two others to test."""
    for folder, people in (("bounding_box_train", range(1, 11)), ("query", [20, 21]), ("bounding_box_test", [20, 21])):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for pid in people:
            for camera in (1, 2):
                for shot in range(2):
                    (tmp_path / "set" / folder / f"{pid:04d}_c{camera}s1_{shot:06d}_00.jpg").write_bytes(b"x")
    return tmp_path / "set"


def test_people_are_held_out_whole(small_set, tmp_path):
    assert split(small_set, tmp_path / "out", 0.3, 0) == {"train": 28, "query": 6, "gallery": 6}
    found = {role: {path.name for path in (tmp_path / "out" / folder).iterdir()} for role, folder in FOLDERS.items()}
    people = {role: {name[:4] for name in names} for role, names in found.items()}
    assert (
        people["query"] == people["gallery"] and not people["query"] & people["train"] and not people["query"] & {"0020", "0021"}
    )
    assert found["query"] | found["gallery"] | found["train"] == {path.name for path in (small_set / FOLDERS["train"]).iterdir()}
    out = tmp_path / "out"
    assert len(index([path.relative_to(out).as_posix() for path in out.glob("*/*")], expect_published=False)) == 40


def test_the_seed_chooses_the_people():
    records = [Record(f"{pid}-{camera}", pid, camera, "train") for pid in range(40) for camera in (1, 2)]
    assert roles_of(records, 0.5, 0) == roles_of(records, 0.5, 0) != roles_of(records, 0.5, 1)


def test_people_of_one_camera_stay_in_the_train_part():
    records = [Record(f"{pid}-{camera}", pid, camera, "train") for pid in range(10) for camera in ((1, 2) if pid < 3 else (1,))]
    roles = roles_of(records, 0.5, 0)
    assert [role == "train" for role in roles] == [record.pid >= 3 for record in records]


def test_mistakes_are_named(small_set, tmp_path):
    for given, message in (
        (["--share", "1.5"], "share must be in (0, 1): got 1.5"),
        (["--output", "."], "--output must be a new folder: '.' exists"),
        (["--data", "nowhere"], "bounding_box_train"),
    ):
        command = ["--data", str(small_set), "--output", str(tmp_path / "out"), *given]
        ended = subprocess.run([sys.executable, "-m", "benchmarks.validation_split", *command], capture_output=True, text=True)
        assert ended.returncode and message in ended.stderr and "Traceback" not in ended.stderr
