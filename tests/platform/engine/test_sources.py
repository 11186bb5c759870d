"""Sources without Ray: an error of one item rejects that item; an error of the whole source is one line."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import lmdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from platform.engine.errors import StorageError, UserError
from platform.engine.ingest.sources import RawConfig, open_source, tar_stream
from platform.engine.ingest.sources.listed_config import ListedConfig
from platform.engine.ingest.sources.source import Candidate, ReadingPlan
from platform.engine.ingest.tasks import ReadUnits, write_blocks
from platform.engine.storage.location import StorageConfig, open_storage
from platform.ingest import remarks
from reidssl.data.mot import CropConfig
from reidssl.data.records import Record
from reidssl.data.sidecars import FieldConfig


def picture(level: int = 0) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((64, 32, 3), level, np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def read(source) -> tuple[dict[str, Candidate], dict[str, str]]:
    """(good images, reasons of the others) by key; good images are converted to the schema of a shard."""
    found = [each for unit in pickle.loads(pickle.dumps(source.plan(0).units)) for each in source.read(unit)]
    for each in found:
        each.key.encode()
        pa.array([each.pid, each.camid], pa.int32())
    return {each.key: each for each in found if not each.error}, {each.key: each.error for each in found if each.error}


def source_of(kind: str, path, config: StorageConfig | None = None, **settings):
    return open_source(RawConfig(kind=kind, path=str(path), **settings), config or StorageConfig())


# ---- folders


@pytest.fixture
def odd_folder(tmp_path) -> Path:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / "folder.jpg").mkdir()
    for name in (b"good.jpg", b"latin\xe9.jpg", b"latin\\xe9.jpg", b"sub/a.jpg", b"sub/notes.txt", b"sub/b.tga", b"sub/c.Zip"):
        Path(os.fsdecode(bytes(root) + b"/" + name)).write_bytes(picture())
    (root / "link.jpg").symlink_to("nowhere")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "sub/parent").symlink_to("..")
    os.mkfifo(root / "pipe.jpg")
    return root


def test_a_folder_with_what_is_no_file(odd_folder, capsys):
    good, aside = read(source_of("folder", odd_folder))
    assert good.keys() == {"good.jpg", "latin\\xe9.jpg", "latin\\\\xe9.jpg", "sub/a.jpg"}
    assert all(each.image == picture() for each in good.values())
    assert {key: reason.partition(":")[0] for key, reason in aside.items()} == {
        "folder.jpg": "not a file",
        "link.jpg": "not there",
        "loop.jpg": "cannot be read",
        "pipe.jpg": "not a file",
    }
    assert "1 .tga, 1 .zip" in capsys.readouterr().out


def test_links_that_lead_out_of_the_folder(tmp_path):
    """They are listed and only followed if asked for. Links within the folder, and a link to the folder itself, are followed."""
    root, outside = tmp_path / "real", tmp_path / "real-other/own.d"
    for file in (root / "7/a.jpg", outside / "secret.jpg"):
        file.parent.mkdir(parents=True)
        file.write_bytes(picture())
    (tmp_path / "in").symlink_to("real")
    (root / "b.jpg").symlink_to("7/a.jpg")
    (root / "c.jpg").symlink_to(outside / "secret.jpg")
    (root / "7/more").symlink_to(outside)
    good, aside = read(source_of("folder", tmp_path / "in"))
    assert good.keys() == {"7/a.jpg", "b.jpg"} and aside.keys() == {"c.jpg", "7/more"}
    assert all(reason.startswith("not followed: a link that leads out of the folder") for reason in aside.values())
    good, aside = read(source_of("folder", tmp_path / "in", follow_links=True))
    assert good.keys() == {"7/a.jpg", "b.jpg", "c.jpg", "7/more/secret.jpg"} and not aside
    assert (
        "follow_links" not in RawConfig(path="x").arguments()
        and RawConfig(path="x", follow_links=True).arguments()["follow_links"]
    )


def test_linked_folders_keep_the_names_of_the_real_ones(tmp_path):
    """Whatever the order of the file system: a link is followed only to what has no name of its own in the source."""
    root, outside = tmp_path / "in", tmp_path / "outside"
    for number in range(12):
        (root / f"{number}").mkdir(parents=True)
        (root / f"{number}/x.jpg").write_bytes(picture())
        (root / f"{(number * 7) % 12}b").symlink_to(f"{number}")
    (root / "0/earlier").symlink_to("../z/deep")
    (root / "z/deep").mkdir(parents=True)
    (root / "z/deep/y.jpg").write_bytes(picture())
    outside.mkdir()
    (outside / "o.jpg").write_bytes(picture())
    for name in ("q", "p", "r"):
        (root / name).symlink_to(outside)
    good, aside = read(source_of("folder", root, follow_links=True))
    assert good.keys() == {*(f"{number}/x.jpg" for number in range(12)), "z/deep/y.jpg", "p/o.jpg"} and not aside
    assert {item.name for item in open_storage(str(root)).list()} == good.keys()


def test_an_empty_folder_is_no_source(tmp_path):
    (tmp_path / "empty.d/sub").mkdir(parents=True)
    with pytest.raises(UserError, match=r"does not exist or holds no files"):
        source_of("folder", tmp_path).plan(0)


def test_what_changes_between_plan_and_read(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"):
        (tmp_path / name).write_bytes(picture())
    source = source_of("folder", tmp_path)
    (unit,) = source.plan(0).units
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "c.jpg").unlink()
    os.mkfifo(tmp_path / "c.jpg")
    with (tmp_path / "d.jpg").open("wb") as file:
        file.truncate((64 << 20) + 1)
    reasons = {each.key: each.error for each in source.read(unit)}
    assert reasons.pop("e.jpg") == ""
    assert {key: reason.partition(":")[0] for key, reason in reasons.items()} == {
        "a.jpg": "not there",
        "b.jpg": "cannot be read",
        "c.jpg": "cannot be read",
        "d.jpg": "too large",
    }
    for each in tmp_path.iterdir():
        each.rmdir() if each.is_dir() else each.unlink()
    tmp_path.rmdir()
    with pytest.raises(UserError, match=r"it is gone\. Mount or restore it"):
        list(source.read(unit))


def test_an_error_of_the_disk_is_of_the_file():
    """An EIO rejects one file. /proc/self/mem is a regular file whose first page cannot be read, which gives a real EIO."""
    source = source_of("folder", "/proc/self")
    (found,) = source.read([Record("mem", -1, -1, "train")])
    assert found.error == "cannot be read: Input/output error"


def test_names_of_labeled_folders(tmp_path):
    for person in (b"20230101123456", b"0001", b"-1", b"caf\xe9"):
        folder = os.fsdecode(bytes(tmp_path) + b"/" + person)
        os.mkdir(folder)
        Path(folder, "a_c2.jpg").write_bytes(picture())
    good, aside = read(source_of("folder", tmp_path, labeled=True))
    assert {key: (each.pid, each.camid) for key, each in good.items()} == {
        "0001/a_c2.jpg": (1, 2),
        "20230101123456/a_c2.jpg": (0, 2),
        "caf\\xe9/a_c2.jpg": (2, 2),
    }
    assert aside == {"-1/a_c2.jpg": "junk: identity -1 is nobody"}
    good, _ = read(source_of("folder", tmp_path, labeled=True, pattern=r"_c(?P<camid>\d)\."))
    assert {each.camid for each in good.values()} == {2}


def test_keys_of_object_storage_that_are_no_paths(s3):
    from platform.engine.storage.s3 import client

    config = StorageConfig(endpoint_url=s3.endpoint_url)
    keys = ["in/a.jpg", "in//b.jpg", "in//", "in/./c.jpg", "in/x//d.jpg", "in/f\\x41.jpg", "in/ü.jpg", "in/1/g.jpg"]
    for level, key in enumerate(keys):
        client(config).put_object(Bucket=s3.bucket, Key=key, Body=picture(level * 9))
    good, aside = read(source_of("folder", f"{s3.uri}/in", config))
    assert not aside and {key: each.image for key, each in good.items()} == {
        key.removeprefix("in/").replace("\\", "\\\\"): picture(level * 9) for level, key in enumerate(keys) if key != "in//"
    }
    client(config).put_object(Bucket=s3.bucket, Key="in/t//t.tar", Body=make_tar([("1.jpg", picture())]))
    assert read(source_of("webdataset", f"{s3.uri}/in", config))[0].keys() == {"t//t/1.jpg"}
    client(config).put_object(Bucket=s3.bucket, Key="/7/a_c1.jpg", Body=picture())
    client(config).put_object(Bucket=s3.bucket, Key="7/a_c1.jpg", Body=picture())
    good, aside = read(source_of("folder", s3.uri, config))
    assert {"7/a_c1.jpg", "/7/a_c1.jpg", "in//b.jpg"} <= good.keys() and not aside


def test_an_object_that_is_gone_is_set_aside_and_a_bucket_that_is_gone_is_one_line(s3):
    from platform.engine.storage.s3 import client

    config = StorageConfig(endpoint_url=s3.endpoint_url)
    for key in ("in/a.jpg", "in//b.jpg", "in/c.jpg"):
        client(config).put_object(Bucket=s3.bucket, Key=key, Body=picture())
    source = source_of("folder", f"{s3.uri}/in", config)
    (unit,) = source.plan(0).units
    for key in ("in/a.jpg", "in//b.jpg"):
        client(config).delete_object(Bucket=s3.bucket, Key=key)
    assert [each.error.partition(":")[0] for each in source.read(unit)] == ["not there", "not there", ""]
    client(config).delete_object(Bucket=s3.bucket, Key="in/c.jpg")
    client(config).delete_bucket(Bucket=s3.bucket)
    with pytest.raises(StorageError, match=r"there is no bucket|it is gone"):
        list(source.read(unit))


# ---- tars


def make_tar(members: list[tuple[str, bytes | tarfile.TarInfo]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(data, tarfile.TarInfo):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return sink.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def labels(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_labels_beside_images_in_tars(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        make_tar(
            [
                ("1.jpg", picture()),
                ("1.json", labels(person_id=7, camera=2)),
                ("2.cls", b"8"),
                ("2.jpg", picture()),
                ("3.jpg", picture()),
                ("3.json", labels(pid=1.7)),
                ("4.jpg", picture()),
                ("4.json", labels(pid=4, split="test")),
                ("5.json", labels(pid=5)),
                ("6.jpg", picture()),
                ("7.jpg", picture()),
                ("7.json", labels(label=7)),
                ("7.pyd", b"cos\n"),
                ("8.jpg", picture()),
                ("8.json", b" " * ((1 << 20) + 1)),
                ("9.jpg", picture()),
                ("9.json", labels(pid=9)),
                ("9.json", labels(pid=9)),
                ("readme.txt", b""),
                ("._9.jpg", b"mac"),
            ]
        )
    )
    good, aside = read(source_of("webdataset", tmp_path))
    assert {key: (each.pid, each.camid) for key, each in good.items()} == {
        "a/1.jpg": (7, 2),
        "a/2.jpg": (8, -1),
        "a/6.jpg": (-1, -1),
        "a/7.jpg": (-1, -1),
    }
    assert good["a/7.jpg"].note.startswith("no identity and no camera, while these are not used: .pyd, label")
    assert aside["a/3.jpg"] == "labels not understood: 3.json, pid: 1.7 is no whole number"
    assert "'test' is none of train, query, gallery" in aside["a/4.jpg"]
    assert aside["a/5.json"].startswith("labels without an image: ")
    assert "8.json: too large" in aside["a/8.jpg"] and "two files beside the image" in aside["a/9.jpg"] and len(aside) == 5
    good, aside = read(source_of("webdataset", tmp_path, splits=["test:gallery"], tar=FieldConfig(pid_field="label")))
    assert good["a/4.jpg"].split == "gallery" and good["a/7.jpg"].pid == 7 and good["a/1.jpg"].pid == -1


def test_members_that_are_no_files_and_odd_names(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        make_tar(
            [
                ("latin\udce9.jpg", picture()),
                ("latin\\xe9.jpg", picture()),
                special("s.jpg", tarfile.SYMTYPE, "/etc/passwd"),
                special("h.jpg", tarfile.LNKTYPE, "x.jpg"),
                special("d.jpg", tarfile.CHRTYPE),
                special("f.jpg", tarfile.FIFOTYPE),
                special("folder.jpg", tarfile.DIRTYPE),
                ("/etc/x.jpg", picture()),
                ("../x.jpg", picture()),
                ("./x.jpg", picture()),
                ("l.jpg", picture()),
                special("l.json", tarfile.SYMTYPE, "x.json"),
                special("dev/null", tarfile.CHRTYPE),
                special("notes", tarfile.SYMTYPE, "/etc/passwd"),
                ("../../home/someone/.profile", b"x"),
            ]
        )
    )
    good, aside = read(source_of("webdataset", tmp_path))
    assert good.keys() == {"a/latin\\xe9.jpg", "a/latin\\\\xe9.jpg", "a/x.jpg"}
    assert {key: reason.partition(":")[0] for key, reason in aside.items()} == {
        "a/s.jpg": "not a file",
        "a/h.jpg": "not a file",
        "a/d.jpg": "not a file",
        "a/f.jpg": "not a file",
        "a/x.jpg": "unsafe name",
        "a/l.jpg": "labels not understood",
        "a/dev/null": "not a file",
        "a/notes": "not a file",
        "a/.profile": "unsafe name",
    }


@pytest.mark.parametrize(
    "harm",
    ["cut in a member", "cut between members", "no end", "header", "gzip cut", "gzip damage", "empty", "xz cut", "bz2 damage"],
)
def test_a_damaged_tar_keeps_what_came_before_and_says_that_there_was_more(tmp_path, harm):
    whole = make_tar([(f"{number}.jpg", picture()) for number in range(6)])
    member = 512 + -(-len(picture()) // 512) * 512
    zipped = gzip.compress(whole, 0)  # stored blocks of 64 kB, not compressed
    data = {
        "cut in a member": whole[: member * 3 + 600],
        "cut between members": whole[: member * 3],
        "no end": whole[: member * 6],
        "header": whole[: member * 3] + b"\x07" * 512 + whole[member * 3 + 512 :],
        "gzip cut": zipped[: member * 3 + 600],
        "gzip damage": gzip.compress(whole)[:200] + bytes(range(200)),
        "empty": b"",
        "xz cut": lzma.compress(whole)[:-60],
        "bz2 damage": bz2.compress(whole)[:40] + bytes(range(200)),
    }[harm]
    (tmp_path / ("b.tar.gz" if "gzip" in harm else "b.tar")).write_bytes(data)
    (tmp_path / "c.tar").write_bytes(make_tar([("1.jpg", picture())]))
    good, aside = read(source_of("webdataset", tmp_path))
    before = {"no end": 6, "empty": 0, "xz cut": 4, "bz2 damage": 0}.get(harm, 3)
    kept = [key for key in good if key.startswith("b/")]
    assert kept == [f"b/{number}.jpg" for number in range(len(kept))] and "c/1.jpg" in good
    assert len(kept) == before or (harm == "gzip damage" and len(kept) < 6)
    assert aside.keys() == {"b/"} and aside["b/"].startswith("damaged tar: ")


def test_tars_that_cannot_be_read_and_tars_of_one_name(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar([("1.jpg", picture())]))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(make_tar([("1.jpg", picture())])))
    (tmp_path / "gone.tar").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.tar")
    good, aside = read(source_of("webdataset", tmp_path))
    assert good.keys() == {"a.tar/1.jpg", "a.tgz/1.jpg"}
    assert aside["gone.tar/"].startswith("not there") and aside["pipe.tar/"].startswith("not a file")


def test_tars_beside_folders_of_their_name(tmp_path):
    """x.tar with y/z.jpg and x/y.tar with z.jpg: keys must be unique. Other tars keep theirs."""
    for name, member in (("x.tar", "y/z.jpg"), ("x/y.tar", "z.jpg"), ("x/y/0.tgz", "z.jpg"), ("xy.tar", "z.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(make_tar([(member, picture())]))
    source = source_of("webdataset", tmp_path)
    found = [each.key for unit in source.plan(0).units for each in source.read(unit)]
    assert sorted(found) == ["x.tar/y/z.jpg", "x/y.tar/z.jpg", "x/y/0/z.jpg", "xy/z.jpg"]


def test_suffixes_of_tars(tmp_path, capsys):
    """In any case and compression; those that are not read are counted, outside of tars and in them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root := tmp_path / "in").mkdir()
    whole = make_tar([(f"{number}.jpg", picture()) for number in range(3)])
    halves = bz2.compress(whole[:1000]) + bz2.compress(whole[1000:])  # as pbzip2 writes it
    for name, data in (
        ("0.tar", whole),
        ("1.tar.xz", lzma.compress(whole)),
        ("2.tar.bz2", halves),
        ("3.TAR", whole),
        ("4.Tgz", gzip.compress(whole)),
        ("5.txz", lzma.compress(whole) + bytes(8)),
        ("6.tbz2", bz2.compress(whole)),
        ("7.tar", bz2.compress(whole)),  # the content counts
        ("8.tar.zst", b"x"),
        ("9.ZIP", b"x"),
        ("99.zip", b"x"),
        ("x.tar", make_tar([("1.jp2", b""), ("1.json", b"{}"), ("2.zip", b""), ("3.jpg", picture()), ("3.tga", b"")])),
    ):
        (root / name).write_bytes(data)
    (root / "more").symlink_to(outside)
    good, aside = read(source_of("webdataset", root))
    assert good.keys() == {f"{stem}/{number}.jpg" for stem in range(8) for number in range(3)} | {"x/3.jpg"}
    assert "are read: 2 .zip, 1 .tar.zst" in capsys.readouterr().out
    assert {key: reason.partition(":")[0] for key, reason in aside.items()} == {
        "x/1.jp2": "not taken",
        "x/2.zip": "not taken",
        "more/": "not followed",
    }
    (outside / "only.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no tar files \(not taken, since only \.tar, .* are read: 1 \.zip\)"):
        source_of("webdataset", outside).plan(0)


def test_a_compressed_tar_does_not_fill_the_memory(tmp_path, monkeypatch):
    """bzip2 packs a gigabyte of zeros into 800 bytes; only the member that fits is read."""
    packer, info = bz2.BZ2Compressor(), tarfile.TarInfo("bomb.jpg")
    info.size = 65 << 20
    parts = [packer.compress(info.tobuf()), *(packer.compress(bytes(1 << 20)) for _ in range(65))]
    parts += [packer.compress(make_tar([("2.jpg", picture())])), packer.flush()]
    (tmp_path / "a.tar.bz2").write_bytes(b"".join(parts))
    source = source_of("webdataset", tmp_path)
    tracemalloc.start()
    good, aside = read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good.keys() == {"a/2.jpg"} and aside["a/bomb.jpg"].startswith("too large: ") and peak < 20 << 20
    long = special("x", tarfile.XHDTYPE)[1]
    long.size = 2 << 20
    (tmp_path / "a.tar.bz2").write_bytes(bz2.compress(long.tobuf() + bytes(3 << 20)))
    assert read(source)[1]["a/"].endswith("a header of 2,097,152 bytes")
    monkeypatch.setattr(tar_stream, "XZ_MEMORY", 1 << 20)
    (tmp_path / "a.tar.bz2").write_bytes(lzma.compress(bytes(512)))  # needs 9 MiB
    assert "Memory usage limit" in read(source)[1]["a/"]


# ---- LMDB


def test_lmdb_with_broken_entries(tmp_path):
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, value in {b"a.jpg": picture(), b"latin\xe9.jpg": picture(), b"none.jpg": b""}.items():
            transaction.put(key, value)
    good, _ = read(source_of("luperson_lmdb", tmp_path))
    assert good.keys() == {"a.jpg", "latin\\xe9.jpg", "none.jpg"}
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(["a.jpg", b"latin\xe9.jpg", "x" * 600, "gone", "a.jpg", "\ud800", 7]))
    good, aside = read(source_of("luperson_lmdb", tmp_path))
    assert good.keys() == {"a.jpg", "latin\\xe9.jpg"}
    assert aside["x" * 600].startswith("not there") and aside["gone"].startswith("not there")
    assert all(aside[f"keys.pkl, entry {place}"].startswith("no key: ") for place in (5, 6)) and len(aside) == 4


# ---- videos


def write_video(path: Path, count: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuvj420p"
        for level in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((80, 96, 3), level * 20, np.uint8), format="rgb24")))
        container.mux(stream.encode())


def test_videos_with_bad_files_among_them(tmp_path, capsys):
    lines = "".join(f"{frame},{frame + 3_000_000_000},8,8,24,60\n" for frame in (1, 8))
    for name in ("a.avi", "a.mp4", "cut.avi", "lost.avi", "words.avi", "latin.avi"):
        write_video(tmp_path / "v.avi", 8)
        (tmp_path / "v.avi").rename(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(lines)
    (tmp_path / "cut.avi").write_bytes((tmp_path / "cut.avi").read_bytes()[:-3000])
    (tmp_path / "noise.avi").write_bytes(b"\x01" * 5000)
    (tmp_path / "noise.txt").write_text("1,1,8,8,24,60\n")
    (tmp_path / "lost.txt").unlink()
    (tmp_path / "words.txt").write_text("words\n")
    (tmp_path / "latin.txt").write_bytes(b"# caf\xe9\n1,1,8,8,24,60\n")
    (tmp_path / "gone.avi").symlink_to("nowhere")
    (tmp_path / "more").symlink_to("/usr")
    (tmp_path / "old.WMV").write_bytes(b"x")
    write_video(Path(os.fsdecode(bytes(tmp_path) + b"/ru\xe9.avi")), 2)
    Path(os.fsdecode(bytes(tmp_path) + b"/ru\xe9.txt")).write_text("1,1,8,8,24,60\n")
    good, aside = read(source_of("video", tmp_path, detections=str(tmp_path)))
    assert good.pop("ru\\xe9/0000001_track00001.jpg").image
    names = [f"{number:07d}_track{number + 3_000_000_000}.jpg" for number in (1, 8)]
    assert good.keys() == {f"{stem}/{name}" for stem in ("a.avi", "a.mp4") for name in names} | {f"cut/{names[0]}"}
    assert good[f"a.avi/{names[1]}"].extras == (8, 3_000_000_008, 1.0)
    assert {key: reason.partition(":")[0] for key, reason in aside.items()} == {
        f"cut/{names[1]}": "video damaged",
        "noise/0000001_track00001.jpg": "video damaged",
        "lost": "no detections",
        "words": "detections not understood",
        "latin": "detections not understood",
        "gone": "not there",
        "more": "not followed",
    }
    shown = capsys.readouterr().out
    assert "5 files as detections (scores) (raw.crops.form)" in shown and "are read: 1 .wmv" in shown


def test_detections_behind_links_that_lead_out(tmp_path):
    """They are read only if asked for, and nothing of their content is shown."""
    root, outside, lines = tmp_path / "in", tmp_path / "outside", "1,1,8,8,24,60\n"
    for folder in (root / "videos/sub", root / "dets", outside):
        folder.mkdir(parents=True)
    for name in ("a", "b", "c", "sub/d"):
        write_video(root / f"videos/{name}.avi", 1)
    (root / "dets/a.txt").write_text(lines)
    (root / "dets/b.txt").symlink_to("a.txt")
    (root / "dets/c.txt").symlink_to(outside / "c.txt")
    (root / "dets/sub").symlink_to(outside)
    (outside / "c.txt").write_text("secret words\n")
    (outside / "d.txt").write_text(lines)
    good, aside = read(source_of("video", root / "videos", detections=str(root / "dets")))
    assert {key.partition("/000")[0] for key in good} == {"a", "b"} and "secret" not in str(aside)
    assert aside["c"].startswith("no detections: c.txt is not in raw.detections (c.txt: not followed: a link that leads out")
    assert aside["sub/d"].startswith("no detections: sub/d.txt is not in raw.detections (sub: not followed")
    good, aside = read(source_of("video", root / "videos", detections=str(root / "dets"), follow_links=True))
    assert {key.partition("/000")[0] for key in good} == {"a", "b", "sub/d"} and "secret" in aside["c"]
    (root / "dets/a.txt").unlink()
    with pytest.raises(UserError, match=r"4 of 4 videos have no detections, the first missing file is .*/dets/a\.txt\. raw"):
        source_of("video", root / "videos", detections=str(root / "dets")).plan(0)


def test_ground_truth_of_a_video(tmp_path):
    write_video(tmp_path / "v.avi", 3)
    (tmp_path / "gt.txt").write_text("1,1,8,8,24,60,1,1,1.0\n1,,8,8,24,60,87\n1,2,8,8,24,60,0,3,0.05\n2,3,8,8,24,60,1,1,0.9\n")
    video = {"path": str(tmp_path / "v.avi"), "detections": str(tmp_path / "gt.txt")}
    good, aside = read(open_source(RawConfig(kind="video", **video), StorageConfig()))
    assert [each.extras[1] for each in good.values()] == [1, 3]
    assert "track is empty (field 2)" in aside["gt.txt, line 2"] and aside["gt.txt, line 3"].startswith("flag 0: ")
    nobody = RawConfig(kind="video", crops=CropConfig(classes=[9]), **video)
    with pytest.raises(UserError, match=r"nothing is left to cut out: .*raw.crops.form, classes and min_visibility"):
        open_source(nobody, StorageConfig()).plan(0)


# ---- unexpected errors of a source


class Odd:
    """A source with rows that do not fit the schema, and a reader that fails in the middle."""

    def __init__(self):
        self.extra_columns = {"split": pa.string(), "track": pa.int32()}

    def plan(self, limit):
        return ReadingPlan(["unit"], None)

    def read(self, unit):
        data = picture()
        good = Candidate("good.jpg", data, 1, 2, extras=(5,))
        yield Candidate("good.jpg", b"damaged", extras=(5,))  # must not exclude the good image of this name
        yield good
        yield good._replace(key="pid.jpg", pid=3_000_000_000)
        yield good._replace(key="camid.jpg", camid="two")
        yield good._replace(key="track.jpg", extras=(2**40,))
        yield good._replace(key="\udce9.jpg")
        yield good._replace(key="unlabeled.jpg", pid=-1, camid=-1, note="odd fields")
        yield good._replace(key="no_camera.jpg", camid=-1)
        raise RuntimeError("nobody thought of this")


class Tally:
    """A stand-in for the driver's counter."""

    def __init__(self):
        self.add, self.calls = self, []

    def remote(self, **counts):
        self.calls.append(counts)


def test_rows_that_cannot_be_stored_and_a_reader_that_breaks_off(tmp_path):
    tally = Tally()
    blocks = list(ReadUnits(Odd(), tally)(pa.table({"unit": [pickle.dumps("unit")]})))
    out = open_storage(str(tmp_path / "out"))
    written = write_blocks(out, blocks, 1 << 20, 16)
    assert [entry.rows for entry in written.entries] == [3] and tally.calls == [{"images": 9, "rejected": 6}]
    reasons = dict(written.rejected)
    assert reasons["good.jpg"].startswith("not an image in a known format")
    assert reasons["pid.jpg"].startswith("cannot be stored: pid '3000000000' is no int32")
    assert reasons["camid.jpg"].startswith("cannot be stored: camid 'two'") and "2**40" not in reasons["track.jpg"]
    assert reasons["\\udce9.jpg"].startswith("cannot be stored: key")
    assert reasons["behind no_camera.jpg"] == "reading broke off: RuntimeError: nobody thought of this"
    lines = remarks(3, written.rejected, written.labels)
    assert lines[0].startswith("set aside, each with its reason in rejected.parquet: 4 cannot be stored, 1 ")
    assert lines[1] == "note: 1 of 3 images have no identity (pid -1), while the others have one"
    assert lines[2].startswith("note: 1 of 2 labeled images have no camera (camid -1): an mAP of them counts matches")
    assert lines[3:] == ["note: 1 images: odd fields"]


def test_settings():
    assert RawConfig(splits=["test:gallery", "a:b:train"], labeled=True).split_names == {"test": "gallery", "a:b": "train"}
    plain = RawConfig(path="/x", labeled=True)
    assert plain.arguments().keys() == {"kind", "path", "labeled"}
    assert replace(plain, pattern="(?P<pid>.)").arguments()["pattern"] == "(?P<pid>.)"
    for settings, text in (
        ({"splits": ["test"]}, "splits must"),
        ({"splits": ["train:query"]}, "splits must"),
        ({"pattern": "(?P<pid>.)"}, "labeled=true"),
        ({"pattern": "(", "labeled": True}, "pattern must be"),
        ({"splits": ["test:gallery"]}, "splits says .* needs labeled=true"),
        ({"kind": "market1501", "labeled": True}, "labeled is not used by kind=market1501, only by folder: got True"),
        ({"kind": "msmt17", "splits": ["test:gallery"]}, "splits is not used by kind=msmt17, only by folder, webdataset"),
        ({"boxes": "labeled"}, "boxes is not used by kind=folder, only by cuhk03"),
        ({"detections": "x"}, "detections is not used by kind=folder, only by luperson_videos, video"),
        ({"kind": "video", "tar": FieldConfig(pid_field="id")}, "tar.pid_field is not used by kind=video, only by webdataset"),
        ({"kind": "video", "listed": ListedConfig(names="x")}, "listed.names is not used by kind=video"),
        ({"kind": "luperson_videos", "crops": CropConfig(classes=[2])}, "crops.classes is not used by .*, only by video:"),
        ({"kind": "luperson", "crops": CropConfig(min_height=9)}, "crops.min_height is not used by kind=luperson"),
        ({"kind": "webdataset", "image_format": "png"}, "image_format is not used by kind=webdataset"),
        ({"kind": "video", "unit_images": 9}, "unit_images is not used by kind=video"),
        ({"kind": "luperson_lmdb", "follow_links": True}, "follow_links is not used by kind=luperson_lmdb"),
        ({"kind": "synthetic", "path": "photos"}, "path is not used by kind=synthetic"),
    ):
        with pytest.raises(ValueError, match=text):
            RawConfig(**settings)
