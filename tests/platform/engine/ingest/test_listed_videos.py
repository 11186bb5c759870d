"""LUPerson's released lists as a source: what is cropped, and every way in which a video can be lost or changed."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from platform.engine.errors import UserError
from platform.engine.ingest.sources import RawConfig, open_source
from platform.engine.ingest.sources.listed_config import ListedConfig
from platform.engine.storage.location import StorageConfig
from reidssl.data.mot import CropConfig
from tests.platform.engine.ingest.published_videos import SIZE, table, write_published, write_video
from tests.platform.engine.test_sources import read

NAMES = ["Italy+Rome+a-_1", "Japan+Tokyo+b", "Japan+Tokyo+c"]
KEYS = [f"{name.split('+')[0]}/{name.split('+')[1]}/{name}" for name in NAMES]
SMALL = CropConfig(min_height=8, min_width=4)


def source(root: Path, detections: str = "dets", sizes: str = "", without_size: str = "boxes", crops: CropConfig = SMALL):
    listed = ListedConfig(names=str(root / "vnames.txt"), sizes=str(root / sizes) if sizes else "", without_size=without_size)
    where = {"path": str(root / "videos"), "detections": str(root / detections)}
    return open_source(RawConfig(kind="luperson_videos", listed=listed, crops=crops, **where), StorageConfig())


def pixels(candidate) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(candidate.image))).astype(int)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_crops_of_the_recorded_size(tmp_path, scale):
    """Boxes of 360 x 480 on videos of 120 x 160 give the same crops as boxes of the size of the videos."""
    write_published(tmp_path, NAMES[:1], scale)
    (tmp_path / "sizes.csv").write_text(f"{NAMES[0]},{SIZE[0] * scale:.0f},{SIZE[1] * scale:.0f}\n")
    good, aside = read(source(tmp_path, sizes="sizes.csv", without_size="reject"))
    assert not aside and list(good) == [f"{KEYS[0]}/{frame:08d}_{number:04d}.jpg" for frame in (1, 5) for number in (0, 1)]
    for key, each in good.items():
        frame, number = (int(part) for part in key[-17:-4].split("_"))
        assert each.extras == (frame, number, 0.5 + number / 4, *(round(side * scale) for side in SIZE), *SIZE)
        assert pixels(each).shape == (99, 40, 3) and abs(pixels(each).mean() - (255 if number else 20 * frame)) < 4
    assert (good[key].pid, good[key].camid, good[key].split) == (-1, -1, "train")


def test_sizes_without_a_file(tmp_path):
    write_published(tmp_path, NAMES[:1], 3.0)
    with pytest.raises(UserError, match=r"do not say how large the frames were.*raw\.listed\.sizes=FILE.*without_size=video"):
        source(tmp_path, without_size="reject").plan(0)
    for settings in (
        {"without_size": "boxes"},  # 360 is the smallest usual height that holds boxes down to 357
        {"without_size": "reject", "crops": CropConfig(recorded_size=(360, 480), min_height=8, min_width=4)},
    ):
        good, aside = read(source(tmp_path, **settings))
        assert not aside and {each.extras[3:5] for each in good.values()} == {(360, 480)}
        assert {pixels(each).shape for each in good.values()} == {(99, 40, 3)}
    good, aside = read(source(tmp_path, without_size="video"))
    assert not good and aside[KEYS[0]].startswith("changed: boxes lie outside of a frame of 120 x 160")


def test_lost_and_changed_videos_are_set_aside(tmp_path):
    kinds = ["good", "lost", "bare", "words", "code", "noise", "wide", "short", "cut", "unsized", "outside", "part"]
    names = [f"x+y+{kind}" for kind in kinds]
    write_published(tmp_path, names)
    videos, dets = tmp_path / "videos/x/y", tmp_path / "dets"
    (videos / "x+y+lost.mp4").unlink()
    (dets / "x+y+bare.pkl").unlink()
    (dets / "x+y+words.pkl").write_bytes(b"words")
    (dets / "x+y+code.pkl").write_bytes(pickle.dumps({1: os.system}))
    (videos / "x+y+noise.mp4").write_bytes(b"\x01" * 5000)
    write_video(videos / "x+y+wide.mp4", 6, (64, 160))
    write_video(videos / "x+y+short.mp4", 4)
    (dets / "x+y+outside.pkl").write_bytes(pickle.dumps(table(1.2)))
    (dets / "x+y+part.pkl").write_bytes(pickle.dumps(table() | {6: [[0, {"bbox": "text"}]]}))
    (videos / "x+y+cut.mp4").unlink()
    write_video(videos / "x+y+cut.avi", 6)  # damaged behind its first frames; another suffix counts, too
    data = (videos / "x+y+cut.avi").read_bytes()
    (videos / "x+y+cut.avi").write_bytes(data[: len(data) * 6 // 10])
    sizes = "".join(f"{name},120,160\n" for name in names if name != "x+y+unsized")
    (tmp_path / "sizes.csv").write_text(sizes)
    good, aside = read(source(tmp_path, sizes="sizes.csv", without_size="reject"))
    whole = {f"x/y/x+y+{kind}/{frame:08d}_{number:04d}.jpg" for kind in ("good", "part") for frame in (1, 5) for number in (0, 1)}
    assert whole <= good.keys() and {key.split("/")[2] for key in good.keys() - whole} <= {"x+y+cut"}
    reasons = {key.split("/")[2]: reason for key, reason in aside.items()}
    assert {name.removeprefix("x+y+"): reason.partition(":")[0] for name, reason in reasons.items()} == {
        "lost": "not there",
        "bare": "no detections",
        "words": "detections not understood",
        "code": "detections not understood",
        "noise": "video damaged",
        "wide": "changed",
        "short": "changed",
        "cut": "video damaged",
        "unsized": "no size",
        "outside": "changed",
        "part, frame 6, number 0": "detection not understood",
    }
    assert "refused as dangerous" in reasons["x+y+code"]
    assert reasons["x+y+wide"] == "changed: the video has 64 x 160 pixels, another shape than the recorded 120 x 160"
    assert reasons["x+y+short"] == "changed: the video has 4 frames, its detections reach to frame 5"


def test_one_file_with_the_detections_of_all_videos(tmp_path):
    write_published(tmp_path, NAMES)
    bad = {2: [[0, {}]]} | table()
    whole = {NAMES[0]: table(), f"{NAMES[1]}.mp4": bad, NAMES[2]: [1, 2], "not+in+list": 3}
    (tmp_path / "dets.pkl").write_bytes(pickle.dumps(whole))
    good, aside = read(source(tmp_path, detections="dets.pkl"))
    assert {key.rpartition("/")[0] for key in good} == set(KEYS[:2]) and len(good) == 8
    assert aside.keys() == {KEYS[2], f"{KEYS[1]}, frame 2, number 0"} and "got list" in aside[KEYS[2]]
    (tmp_path / "dets.pkl").write_bytes(pickle.dumps(table()))  # of one video, without its name
    with pytest.raises(UserError, match=r"one file must hold \{name of the video"):
        source(tmp_path, detections="dets.pkl").plan(0)


def test_a_limit_counts_detections(tmp_path):
    write_published(tmp_path, NAMES)
    (tmp_path / "dets" / f"{NAMES[0]}.pkl").write_bytes(b"words")
    found = source(tmp_path)
    units = found.plan(5).units
    assert [unit.video.name for unit in units] == NAMES
    assert sum(not each.error for unit in units for each in found.read(unit)) == 5
    assert [unit.video.name for unit in found.plan(4).units] == NAMES[:2]


def test_nothing_to_read(tmp_path):
    write_published(tmp_path, NAMES)
    for video in (tmp_path / "videos").rglob("*.mp4"):
        video.rename(video.with_suffix(".part"))
    with pytest.raises(UserError, match=r"none of the 3 listed videos can be used: 3 not there; the first is Italy/Rome/"):
        source(tmp_path).plan(0)
    for text, message in (("", "lists no videos"), ("a\nb\n", r"vnames\.txt: .*country\+city\+key: got 'a'")):
        (tmp_path / "vnames.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            source(tmp_path).plan(0)
    (tmp_path / "sizes.csv").write_text("a,b\n")
    (tmp_path / "vnames.txt").write_text(f"{NAMES[0]}\n")
    with pytest.raises(UserError, match=r"raw\.listed\.sizes .*sizes\.csv: line 1: it must be name,height,width"):
        source(tmp_path, sizes="sizes.csv").plan(0)
    for settings, key in (({}, "listed.names"), ({"listed": ListedConfig(names="x")}, "detections")):
        with pytest.raises(UserError, match=rf"raw\.{key} is empty"):
            open_source(RawConfig(kind="luperson_videos", path="x", **settings), StorageConfig())


def test_the_lists_are_part_of_the_arguments():
    listed = ListedConfig(names="/a/vnames.txt", without_size="boxes")
    found = RawConfig(kind="luperson_videos", path="/v", detections="/d", listed=listed).arguments()
    assert found["listed"] == {"names": "/a/vnames.txt", "sizes": "", "without_size": "boxes"} and "crops" in found
