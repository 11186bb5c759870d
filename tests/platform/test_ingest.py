"""Ingest: every kind of source to shards, with the faults of real sources (damaged files, repeats, odd names)."""

import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import lmdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from platform.engine.config.compose import load_config
from platform.engine.config.program import docstring
from platform.engine.data.shards import read_manifest, read_rows, verify, write_shard
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.ingest.rounds import ROUNDS
from platform.engine.ingest.sources import KINDS, RawConfig, open_source
from platform.engine.ingest.sources.source import Candidate, ReadingPlan
from platform.engine.ingest.sources.tar_archives import TarSource
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.storage.s3 import client
from platform.ingest import IngestConfig, arguments_of, clean, ingest, main, summary
from tests.fixtures_shards import rejected_of
from tests.platform.engine.ingest.published_videos import write_published
from tests.platform.engine.storage.answers import refusal

ROOT = Path(__file__).resolve().parents[2]


def picture(seed: int, size=(64, 32), image_format="JPEG", of=lambda image: image, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    sink = io.BytesIO()
    of(Image.fromarray(pixels)).save(sink, image_format, **options)
    return sink.getvalue()


def write_all(root, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        location = root.joinpath(name)
        location.write_bytes(data)


def run(tmp_path, *overrides: str, output: str = "shards"):
    """Run the program in this process as from the command line; returns (location, manifest)."""
    target = f"{tmp_path}/{output}"
    manifest = main(load_config(IngestConfig, "ingest", [f"output={target}", *overrides]))
    location = open_storage(target)
    assert verify(location) == []
    return location, manifest


# ---- kinds of sources, through Ray


def shown_in_help() -> list[IngestConfig]:
    text = docstring("ingest").replace("\\\n", "")
    commands = re.findall(r"^  python -m platform\.ingest (.*?)(?:   \(.*)?$", text, re.MULTILINE)
    return [load_config(IngestConfig, "ingest", command.split()) for command in commands]


def test_the_command_for_released_lists_says_all_that_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path, ["x+y+a"])
    (shown,) = (config for config in shown_in_help() if config.raw.kind == "luperson_videos")
    (unit,) = open_source(shown.raw, shown.storage).plan(0).units
    assert unit.video.name == "x+y+a"


def test_help_shows_one_command_for_each_kind_of_source():
    shown = shown_in_help()
    assert sorted(config.raw.kind for config in shown) == sorted(KINDS)
    assert all(config.output and (config.raw.path or config.raw.kind == "synthetic") for config in shown)


def test_folder_keeps_bytes_and_lists_what_it_cannot_use(tmp_path, ray_session):
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {"a/1.jpg": picture(1), "a/2.PNG": picture(2, (50, 20), "PNG"), "b/c/3.jpeg": picture(3)}
    bad = {
        "a/cut.jpg": picture(4)[:-400],
        "a/cut.png": picture(5, image_format="PNG")[:-400],
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "eps.jpg": picture(6, image_format="EPS"),
        "huge.png": picture(11, (201, 200), "PNG"),
        "phone.HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    }
    good |= {
        "d/deep.png": picture(7, image_format="PNG", of=lambda image: Image.fromarray(np.full((64, 32), 65535, np.uint16))),
        "d/lying.jpg": picture(8, (32, 64), exif=turned),
        "d/print.jpg": picture(9, of=lambda image: image.convert("CMYK")),
        "d/see.png": picture(10, image_format="PNG", of=lambda image: Image.new("RGBA", image.size)),
    }
    write_all(open_storage(str(tmp_path / "in")), good | bad | {"notes.txt": b"no image"})
    location, manifest = run(tmp_path, "raw.kind=folder", f"raw.path={tmp_path}/in", "max_pixels=40000")
    rows = read_rows(location, ["key", "image", "height", "width", "pid", "camid", "split"])
    assert dict(zip(rows["key"].to_pylist(), rows["image"].to_pylist(), strict=True)) == good
    sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
    assert sizes == [(50, 20) if key == "a/2.PNG" else (64, 32) for key in good]  # upright
    assert set(rows["pid"].to_pylist()) == set(rows["camid"].to_pylist()) == {-1}
    assert manifest.splits == {"train": 7} and manifest.num_rejected == 7
    assert (
        manifest.converted
        == read_manifest(location).converted
        == {"cmyk": 1, "composed": 1, "gray": 1, "rotated": 1, "sixteen_bit": 1}
    )
    assert summary(manifest).endswith(
        "7 rejected; when used: 1 converted from CMYK, 1 composed over white, 1 gray, 1 turned "
        "upright by EXIF, 1 scaled from 16 bits"
    )
    reasons = dict(rejected_of(location))
    assert reasons.keys() == bad.keys()
    assert reasons["huge.png"] == "201 x 200 = 40,200 pixels are more than max_pixels allows (40,000)"
    assert reasons["empty.jpg"] == "empty file" and "truncated" in reasons["a/cut.jpg"]
    assert "known format" in reasons["text.jpg"] and "PostScript is not supported" in reasons["eps.jpg"]
    assert "HEIC is not supported: convert it" in reasons["phone.HEIC"]


def test_market1501_with_a_limit(tmp_path, ray_session):
    names = [
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0003_c2s1_000001_00.jpg",
        "bounding_box_test/0003_c4s1_000002_01.jpg",
        "bounding_box_test/0000_c1s1_000003_01.jpg",
        "bounding_box_test/-1_c1s1_000004_01.jpg",
    ]
    write_all(open_storage(str(tmp_path / "in")), {name: picture(i) for i, name in enumerate(names)})
    location, manifest = run(tmp_path, "raw.kind=market1501", f"raw.path={tmp_path}/in")
    found = {row["key"]: (row["pid"], row["camid"], row["split"]) for row in read_rows(location).to_pylist()}
    assert found == {
        names[0]: (2, 1, "train"),
        names[1]: (3, 2, "query"),
        names[2]: (3, 4, "gallery"),
        names[3]: (0, 1, "gallery"),
    }
    assert manifest.splits == {"gallery": 2, "query": 1, "train": 1}
    _, limited = run(tmp_path, "raw.kind=market1501", f"raw.path={tmp_path}/in", "limit=2", output="few")
    assert limited.num_rows == 2


def test_msmt17(tmp_path, ray_session):
    names = {
        "list_train.txt": ("0000/0000_000_01_0303morning_0015_0.jpg", "train"),
        "list_val.txt": ("0000/0000_001_02_0303morning_0015_0.jpg", "train"),
        "list_query.txt": ("0000/0000_000_05_0303noon_0015_0.jpg", "test"),
        "list_gallery.txt": ("0000/0000_001_06_0303noon_0015_0.jpg", "test"),
    }
    files = {}
    for index, (listing, (name, folder)) in enumerate(names.items()):
        files[listing] = f"{name} 0\n".encode()
        files[f"{folder}/{name}"] = picture(index)
    write_all(open_storage(str(tmp_path / "in")), files)
    location, manifest = run(tmp_path, "raw.kind=msmt17", f"raw.path={tmp_path}/in")
    assert manifest.splits == {"gallery": 1, "query": 1, "train": 2}
    assert sorted(read_rows(location, ["camid"])["camid"].to_pylist()) == [1, 2, 5, 6]


@pytest.mark.parametrize("with_key_list", [False, True])
def test_luperson_lmdb(tmp_path, ray_session, with_key_list):
    images = {f"{index:04d}.jpg": picture(index) for index in range(20)}
    images["0007.jpg"] = b"damaged"
    (tmp_path / "in").mkdir()
    with lmdb.open(str(tmp_path / "in/lmdb"), map_size=10 << 20) as environment, environment.begin(write=True) as t:
        for key, value in images.items():
            t.put(key.encode(), value)
        t.put(b"__len__", b"20")
    wanted = sorted(images)
    if with_key_list:
        wanted = wanted[5:]
        (tmp_path / "in/keys.pkl").write_bytes(pickle.dumps([*wanted, "gone.jpg"]))
    location, manifest = run(tmp_path, "raw.kind=luperson_lmdb", f"raw.path={tmp_path}/in", "raw.unit_images=6")
    rows = read_rows(location, ["key", "image"])
    wanted.remove("0007.jpg")
    assert rows["key"].to_pylist() == wanted
    assert rows["image"].to_pylist() == [images[key] for key in wanted]
    assert [key for key, _ in rejected_of(location)] == ["0007.jpg", *(["gone.jpg"] if with_key_list else [])]
    assert manifest.num_rows + manifest.num_rejected == (16 if with_key_list else 20)


def test_video_with_detections(tmp_path, ray_session):
    frames = write_video(tmp_path / "street.avi", 12)
    (tmp_path / "street.txt").write_text(
        "1,5,10,8,24,60,2.5,-1,-1,-1\n4,5,20,8,24,60,1.5\n4,5,20,8,24,60,1.5\n4,6,20,8,4,9,1.5\n12,-1,30,8,24,60,1\n"
    )
    location, manifest = run(
        tmp_path,
        "raw.kind=video",
        f"raw.path={tmp_path}/street.avi",
        f"raw.detections={tmp_path}/street.txt",
        "raw.image_format=png",
    )
    rows = read_rows(location, ["key", "image", "frame", "track", "score", "height", "width"]).to_pylist()
    assert [(row["frame"], row["track"], row["score"]) for row in rows] == [(1, 5, 2.5), (4, 5, 1.5), (12, -1, 1.0)]
    assert rows[0]["key"] == "street/0000001_track00005.png"
    for row, left in zip(rows, (10, 20, 30), strict=True):
        crop = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(int)
        assert crop.shape == (60, 24, 3) == (row["height"], row["width"], 3)
        expected = frames[row["frame"] - 1][8:68, left : left + 24]
        assert np.abs(crop - expected).mean() < 6  # the video is compressed
    reasons = [reason for _, reason in rejected_of(location)]
    assert len(reasons) == 2 and "duplicate key" in reasons and any("too small" in reason for reason in reasons)
    assert manifest.num_rejected == 2


def test_released_lists_continue_where_they_were_interrupted(tmp_path, ray_session):
    """The storage of the videos breaks off after the second video. Afterwards the first two are not read again."""
    write_published(tmp_path, [f"x+y+{letter}" for letter in "abcd"])
    (tmp_path / "videos/x/y/x+y+d.mp4").unlink()
    settings = [
        "raw.kind=luperson_videos",
        f"raw.path={tmp_path}/videos",
        f"raw.listed.names={tmp_path}/vnames.txt",
        f"raw.detections={tmp_path}/dets",
        "raw.listed.without_size=boxes",
        "raw.crops.min_height=8",
        "resume_units=1",
    ]
    whole = run(tmp_path, *settings, output="whole")[1]
    assert (whole.num_rows, whole.num_rejected) == (12, 1)
    config = load_config(IngestConfig, "ingest", [f"output={tmp_path}/broken", *settings])
    source = BreaksOff(open_source(config.raw, config.storage), "x+y+c")
    with pytest.raises(UserError, match="the storage is gone"):
        ingest(source, source.plan(0), open_storage(config.output), config, arguments_of(config))
    for letter in "ab":
        (tmp_path / f"videos/x/y/x+y+{letter}.mp4").write_bytes(b"no video any more")
    for changed, text in (
        ("limit=100", "limit was 0, now 100"),
        ("raw.crops.min_height=9", "raw.crops.min_height was 8, now 9"),
        ("resume_units=9", "resume_units was 1, now 9"),
    ):
        with pytest.raises(UserError, match=rf"other arguments \({text}\); it has 2 finished rounds.*Repeat the old settings"):
            run(tmp_path, *settings, changed, output="broken")
    (tmp_path / "link").symlink_to(".")
    linked = [text.replace(f"{tmp_path}/", f"{tmp_path}/link/") for text in settings]
    location, found = run(tmp_path, *linked, output="broken")
    assert replace(found, source=whole.source, arguments=whole.arguments) == whole
    assert run(tmp_path, *settings, output="broken")[1] == found  # complete already
    assert not (tmp_path / "broken" / ROUNDS).exists()
    assert rejected_of(location) == [("x/y/x+y+d", "not there: the video is listed, but it is not in raw.path")]


class BreaksOff:
    """A source whose storage is gone when it reads one of the videos."""

    def __init__(self, source, name):
        self.source, self.name, self.extra_columns, self.plan = source, name, source.extra_columns, source.plan

    def read(self, unit):
        if unit.video.name == self.name:
            raise UserError("the storage is gone")
        yield from self.source.read(unit)


def write_video(path: Path, count: int) -> list[np.ndarray]:
    """A clip in which every frame has a different brightness, so that a shifted frame number is visible."""
    frames = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.bit_rate = 96, 80, 4_000_000
        for index in range(count):
            ramp = np.linspace(0, 60, 96)[None, :, None] + np.linspace(0, 20, 80)[:, None, None] + index * 14
            frames.append(np.repeat(ramp, 3, 2).clip(0, 255).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[-1], format="rgb24")))
        container.mux(stream.encode())
    return [frame.astype(int) for frame in frames]


def test_tars_from_s3_to_s3(tmp_path, s3, ray_session):
    config = StorageConfig(endpoint_url=s3.endpoint_url)
    root = open_storage(s3.uri, config)
    (root / "in/00000.tar").write_bytes(
        make_tar(
            [
                ("a.jpg", picture(1)),
                ("a.json", b'{"pid": 7, "camid": 2, "split": "query"}'),
                ("b.jpg", picture(2)),
                ("b.jpg", picture(3)),
                ("c.jpg", b"damaged"),
                ("readme.txt", b""),
            ]
        )
    )
    (root / "in/x/00001.tar").write_bytes(make_tar([("a.jpg", picture(4))]))
    overrides = [
        "raw.kind=webdataset",
        f"raw.path={s3.uri}/in",
        f"output={s3.uri}/out",
        "storage=s3",
        f"storage.endpoint_url={s3.endpoint_url}",
    ]
    manifest = main(load_config(IngestConfig, "ingest", overrides))
    out = root / "out"
    assert verify(out) == []
    rows = read_rows(out, ["key", "image", "pid", "camid", "split"]).to_pylist()
    assert [(row["key"], row["pid"], row["camid"], row["split"]) for row in rows] == [
        ("00000/a.jpg", 7, 2, "query"),
        ("00000/b.jpg", -1, -1, "train"),
        ("x/00001/a.jpg", -1, -1, "train"),
    ]
    assert [row["image"] for row in rows] == [picture(1), picture(2), picture(4)]
    assert [key for key, _ in rejected_of(out)] == ["00000/b.jpg", "00000/c.jpg"]
    assert "testing" not in (out / "manifest.json").read_text()
    assert main(load_config(IngestConfig, "ingest", overrides)) == manifest  # complete already


def make_tar(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_synthetic_people(tmp_path, ray_session):
    overrides = ["raw.kind=synthetic", "raw.synthetic.num_pretrain=24", "raw.synthetic.image_size=[64,32]"]
    location, manifest = run(tmp_path, *overrides)
    rows = read_rows(location, ["key", "height", "width", "pid", "planted"]).to_pylist()
    assert len(rows) == 24 and {(row["height"], row["width"], row["pid"]) for row in rows} == {(64, 32, -1)}
    assert sum(row["planted"] for row in rows) == 6  # a quarter
    assert manifest.arguments["raw"]["synthetic"]["num_pretrain"] == 24


def test_shards_are_equal_every_time_and_about_the_size_asked_for(tmp_path, ray_session):
    images = {f"{index:03d}.png": picture(index, (110, 90), "PNG") for index in range(120)}  # 30 kB each
    write_all(open_storage(str(tmp_path / "in")), images)
    overrides = [f"raw.path={tmp_path}/in", "shard_mb=1", "row_group_rows=16", "raw.unit_images=7"]
    location, first = run(tmp_path, *overrides, output="one")
    _, second = run(tmp_path, *overrides, output="two")
    assert first == second and first.checksum == second.checksum
    rows = read_rows(location, ["key", "image"])
    assert rows["key"].to_pylist() == sorted(images)  # the order of the source, not of completion
    assert rows["image"].to_pylist() == [images[key] for key in sorted(images)]
    assert len(first.files) >= 3
    assert all(0.7e6 < entry.bytes < 1.8e6 for entry in first.files[:-1])
    assert all(group == 16 for entry in first.files for group in entry.row_groups[:-1])


# ---- the job


def test_done_other_arguments_overwrite_and_leftovers(tmp_path, ray_session, capsys):
    write_all(open_storage(str(tmp_path / "in")), {f"{i}.jpg": picture(i) for i in range(5)})
    arguments = [f"raw.path={tmp_path}/in", "limit=3"]
    location, manifest = run(tmp_path, *arguments)
    assert manifest.num_rows == 3
    capsys.readouterr()
    run(tmp_path, *arguments)
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"made with other arguments \(limit was 3, now 4\).*overwrite=true"):
        run(tmp_path, f"raw.path={tmp_path}/in", "limit=4")
    # An attempt that died leaves shards but no manifest; the next attempt starts over and deletes them.
    write_shard(location, read_rows(location, ["key", "image", "height", "width", "pid", "camid"]).slice(0, 1))
    (location / "manifest.json").delete()
    (location / "mine.txt").write_bytes(b"not ours")
    run(tmp_path, f"raw.path={tmp_path}/in", "limit=4")
    _, replaced = run(tmp_path, *arguments, "overwrite=true")
    assert replaced == manifest
    left = {item.name for item in location.list()}
    assert left == {entry.name for entry in manifest.files} | {"manifest.json", "rejected.parquet", "mine.txt"}


def test_nothing_usable_publishes_nothing(tmp_path, ray_session):
    write_all(open_storage(str(tmp_path / "in")), {"a.jpg": b"", "b.jpg": b"x"})
    with pytest.raises(UserError, match=r"none of the 2 images could be used \(a\.jpg: empty file"):
        run(tmp_path, f"raw.path={tmp_path}/in")
    with pytest.raises(StorageError, match="no data set"):
        read_manifest(open_storage(str(tmp_path / "shards")))


def test_an_output_is_cleaned_without_the_right_to_list_uploads(s3, capsys):
    config = StorageConfig(endpoint_url=s3.endpoint_url, max_attempts=1, retry_timeout_s=403)  # a client of its own
    client(config).meta.events.register(
        "before-send.s3.ListMultipartUploads", lambda request, **_: refusal(request, 403, "AccessDenied")
    )
    output = open_storage(f"{s3.uri}/out", config)
    for name in ("manifest.json", "shard-00000.parquet", "shard-00001.parquet", "notes.txt"):
        (output / name).write_bytes(b"1")
    clean(output, kept=["shard-00001.parquet"])
    assert [item.name for item in output.list()] == ["notes.txt", "shard-00001.parquet"]
    assert "stay: cannot clean up" in (said := capsys.readouterr().out) and "s3:ListBucketMultipartUploads" in said


def test_trouble_inside_a_task_is_one_clear_line(tmp_path, ray_session):
    data = picture(1)

    class Broken:
        def __init__(self):
            self.extra_columns = {"split": pa.string()}

        def plan(self, limit):
            return ReadingPlan(["unit"], 1)

        def read(self, unit):
            yield Candidate("a.jpg", data)
            raise StorageError("cannot read s3://bucket/x: permission denied. Check the policy")

    with pytest.raises(UserError) as caught:
        ingest(Broken(), Broken().plan(0), open_storage(str(tmp_path / "out")), IngestConfig(), {"raw": {}})
    assert str(caught.value) == "cannot read s3://bucket/x: permission denied. Check the policy"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["raw.path=/nowhere"], "/nowhere does not exist or holds no files"),
        (["raw.path="], "raw.path is empty"),
        (["output="], "output is empty"),
        (["raw.path={tmp}/text"], "no images below this folder"),
        (["raw.path={tmp}/text/a.txt"], "is a file"),
        (["raw.kind=market1501", "raw.path={tmp}/text"], "not a Market-1501 layout"),
        (["raw.kind=luperson_lmdb", "raw.path={tmp}/text"], "is no LMDB: expected data.mdb"),
        (["raw.kind=luperson_lmdb", "raw.path=s3://bucket/x"], "LMDB cannot be read from object storage"),
        (["raw.kind=webdataset", "raw.path={tmp}/text"], "holds no tar files"),
        (["raw.kind=video", "raw.path={tmp}/text"], "raw.detections is empty"),
        (["raw.kind=video", "raw.path={tmp}/text", "raw.detections=x"], "is no video and holds none"),
        (["raw.kind=video", "raw.path={tmp}/text/a.txt", "raw.detections={tmp}/text/a.txt"], "line 1"),
    ],
)
def test_wrong_sources_are_refused_in_plain_words(tmp_path, ray_session, overrides, text):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("words")
    with pytest.raises(UserError, match=text):
        run(tmp_path, *[override.format(tmp=tmp_path) for override in overrides])


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("raw.kind=foldr", "kind must be one of folder, market1501"),
        ("raw.synthetic.num_pretrain=0", "num_pretrain must be at least 1"),
        ("shard_mb=0", "shard_mb must be at least 1: got 0"),
        ("raw.crops.min_heigth=3", "no key 'raw.crops.min_heigth'; did you mean raw.crops.min_height"),
        ("limit=many", "limit"),
        ("max_pixels=0", r"max_pixels must be in \[1, 178956970\]: got 0"),
    ],
)
def test_wrong_settings(override, text):
    with pytest.raises(ConfigError, match=text):
        load_config(IngestConfig, "ingest", [override])


# ---- readers without Ray


@pytest.mark.parametrize(
    ("kind", "names", "camids"),
    [
        (
            "dukemtmc",
            ["bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c8_f0052565.jpg"],
            [2, 2, 8],
        ),
        (
            "cuhk03",
            [
                "labeled/bounding_box_train/0001_c1_1.png",
                "labeled/query/0003_c1_21.png",
                "labeled/bounding_box_test/0003_c2_26.png",
            ],
            [1, 1, 2],
        ),
    ],
)
def test_further_labeled_sets(tmp_path, kind, names, camids, capsys):
    """They are planned and read without Ray, because their layouts differ from Market-1501's in names only."""
    write_all(open_storage(str(tmp_path)), {name: picture(index) for index, name in enumerate(names)})
    config = RawConfig(kind=kind, path=str(tmp_path), boxes="labeled" if kind == "cuhk03" else "")
    source = open_source(config, StorageConfig())
    (unit,) = source.plan(limit=0).units
    found = {item.key: (item.image, item.camid, item.split) for item in source.read(unit)}
    assert found == {
        name: (picture(index), camids[index], split)
        for index, (name, split) in enumerate(zip(names, ("train", "query", "gallery"), strict=True))
    }
    assert ("boxes" in config.arguments()) == (kind == "cuhk03")
    assert capsys.readouterr().out.count("were published") == 3


def read_all(source, limit: int = 0) -> list[Candidate]:
    units = pickle.loads(pickle.dumps(source.plan(limit).units))
    return [candidate for unit in units for candidate in source.read(unit)]


def test_tars_hostile_damaged_and_limited(tmp_path):
    root = open_storage(str(tmp_path / "tars"))
    hostile = make_tar(
        [
            ("../../etc/x.jpg", picture(1)),
            ("/abs.jpg", picture(2)),
            ("./ok/d.jpg", picture(3)),
            ("ok/e.jpg", picture(4)),
            ("ok/e.json", b"[1]"),
        ]
    )
    (root / "hostile.tar").write_bytes(hostile)
    whole = make_tar([(f"{index}.jpg", picture(index, (100, 100))) for index in range(6)])
    (root / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (root / "noise.tar").write_bytes(b"x" * 5000)
    found = read_all(TarSource(root))
    errors = {candidate.key: candidate.error for candidate in found if candidate.error}
    good = [candidate.key for candidate in found if not candidate.error]
    assert good == [*(f"cut/{index}.jpg" for index in range(len(good) - 1)), "hostile/ok/d.jpg"] and 1 < len(good) < 6
    assert "leads out of the tar" in errors["hostile/x.jpg"] and "leads out of the tar" in errors["hostile/abs.jpg"]
    assert "ok/e.json holds [1]" in errors["hostile/ok/e.jpg"]
    assert errors["cut/"].startswith("damaged tar: ") and errors["noise/"].startswith("damaged tar: ")
    assert not (tmp_path / "etc").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["tars"]
    assert len(read_all(TarSource(root), limit=2)) == 2
    assert [c.key for c in read_all(TarSource(root / "hostile.tar"))][2:] == ["hostile/ok/d.jpg", "hostile/ok/e.jpg"]


def test_a_key_list_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 20):
        pass
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps([Evil()]))
    source = open_source(RawConfig(kind="luperson_lmdb", path=str(tmp_path)), StorageConfig())
    with pytest.raises(UserError, match=r"keys\.pkl.*exec"):
        source.plan(0)


def test_a_cut_video_gives_the_frames_before_the_damage(tmp_path):
    write_video(tmp_path / "v.avi", 30)
    (tmp_path / "v.txt").write_text("".join(f"{frame},1,10,8,24,60,1\n" for frame in (1, 2, 30, 99)))
    config = RawConfig(kind="video", path=str(tmp_path), detections=str(tmp_path))
    found = read_all(open_source(config, StorageConfig()))
    assert [bool(candidate.error) for candidate in found] == [False, False, False, True]
    assert found[3].key == "v/0000099_track00001.jpg" and "frame 30" in found[3].error


# ---- the command line


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "platform.ingest", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_command_line(tmp_path):
    write_all(open_storage(str(tmp_path / "in")), {"1.jpg": picture(1), "2.jpg": b"damaged"})
    done = command(f"raw.path={tmp_path}/in", f"output={tmp_path}/out", "runtime.num_cpus=2", "runtime.object_store_gib=0.2")
    assert done.returncode == 0, done.stderr
    assert "1 images (train 1) in 1 shard," in done.stdout and "1 rejected" in done.stdout
    assert done.stderr == "" and len(done.stdout.splitlines()) < 6
    assert json.loads((tmp_path / "out/manifest.json").read_text())["num_rows"] == 1


def test_command_line_with_a_misspelled_key():
    done = command("sorce.kind=folder")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: configuration: there is no key 'sorce") and len(done.stderr.splitlines()) == 1
