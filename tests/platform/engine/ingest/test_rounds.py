"""Rounds of an ingest: which are done again after an interruption."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from platform.engine.data.shards import FileEntry
from platform.engine.errors import UserError
from platform.engine.ingest.arguments import differences
from platform.engine.ingest.rounds import ROUNDS, Rounds, unfinished
from platform.engine.ingest.sources import RawConfig
from platform.engine.ingest.sources.listed_config import ListedConfig
from platform.engine.ingest.tasks import Written
from platform.engine.storage.location import open_storage

ROOT = Path(__file__).resolve().parents[4]
ARGUMENTS = {"raw": {"kind": "folder"}, "limit": 0}


def writer(output, done: list[list[str]], stop_before: str = ""):
    """Writes one file for the units of a round; fails at a round with the unit `stop_before`."""

    def write(units: list[str]) -> Written:
        if stop_before in units:
            raise OSError("no more power")
        done.append(units)
        name = f"shard-{'-'.join(units)}.parquet"
        output.joinpath(name).write_bytes(b"x" * len(units))
        entry = FileEntry(name, len(units), len(units), "0" * 64, [len(units)])
        return Written([entry], [(f"bad {units[0]}", "why")], Counter(train=len(units)), Counter(gray=1), Counter(identity=2))

    return write


def interrupted(output) -> Written:
    """Two of three rounds of five units are done."""
    with pytest.raises(OSError, match="no more power"):
        Rounds(output, ARGUMENTS, list("abcde"), 2).run(writer(output, [], stop_before="e"))


def again(output, arguments=ARGUMENTS, units="abcde", size=2) -> tuple[list[list[str]], Written, Rounds]:
    rounds, done = Rounds(output, arguments, list(units), size), []
    rounds.find()
    return done, rounds.run(writer(output, done)), rounds


def test_only_missing_rounds_are_done_and_the_result_is_that_of_one_go(tmp_path, capsys):
    output, other = open_storage(str(tmp_path / "a")), open_storage(str(tmp_path / "b"))
    interrupted(output)
    done, found, rounds = again(output)
    assert done == [["e"]] and found == Rounds(other, ARGUMENTS, list("abcde"), 2).run(writer(other, []))
    assert found.splits == {"train": 5} and [key for key, _ in found.rejected] == ["bad a", "bad c", "bad e"]
    assert "2 of 3 rounds are there, 4 images" in capsys.readouterr().out
    rounds.forget()
    assert not (tmp_path / "a" / ROUNDS).exists() and rounds.kept() == {entry.name for entry in found.entries}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "shard-a-b.parquet").unlink(), ["ab", "e"]),
        (lambda folder: (folder / "shard-a-b.parquet").write_bytes(b"torn, longer"), ["ab", "e"]),
        (lambda folder: (folder / ROUNDS / "00001.json").write_text('{"entries": ['), ["cd", "e"]),
        (lambda folder: (folder / ROUNDS / "00001.json").write_text("[1]"), ["cd", "e"]),
        (lambda folder: (folder / ROUNDS / "00001.json").unlink(), ["cd", "e"]),
    ],
)
def test_a_round_whose_record_or_shard_is_gone_is_done_again(tmp_path, change, expected):
    output = open_storage(str(tmp_path))
    interrupted(output)
    change(tmp_path)
    assert ["".join(units) for units in again(output)[0]] == expected


@pytest.mark.parametrize("settings", [{"size": 3}, {"units": "xbcye"}])
def test_other_units_start_over_and_say_so(tmp_path, settings, capsys):
    output = open_storage(str(tmp_path))
    interrupted(output)
    assert sum(map(len, again(output, **settings)[0])) == 5
    assert "note: 2 finished rounds of an interrupted ingest do not fit the source" in capsys.readouterr().out


def test_rounds_of_other_arguments_are_only_overwritten_on_demand(tmp_path):
    output = open_storage(str(tmp_path))
    interrupted(output)
    kept = sorted(path.name for path in tmp_path.rglob("*"))
    for units in ("abcde", "a"):  # also if there is only one round now
        with pytest.raises(UserError, match=r"other arguments \(limit was 0, now 7\); it has 2 finished rounds\. Repeat"):
            again(output, ARGUMENTS | {"limit": 7}, units)
    assert sorted(path.name for path in tmp_path.rglob("*")) == kept
    assert len(again(output)[0]) == 1
    other = ARGUMENTS | {"limit": 7}
    rounds = Rounds(output, other, list("abcde"), 2)
    rounds.find(overwrite=True)
    with pytest.raises(OSError, match="no more power"):
        rounds.run(writer(output, done := [], stop_before="e"))
    assert len(done) == 2 and unfinished(output, other)
    (tmp_path / ROUNDS / "arguments.json").unlink()
    with pytest.raises(UserError, match=r"with unknown arguments, .*overwrite=true"):
        unfinished(output, other)
    assert not unfinished(output, other, overwrite=True)


def test_another_spelling_of_a_place_continues(tmp_path, monkeypatch):
    (tmp_path / "real/in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    output = open_storage(str(tmp_path / "out"))
    raws = []
    for root in (f"{tmp_path}/real/in", "link/in/", f"file://{tmp_path}/link/in"):
        listed = ListedConfig(names=f"{root}/names", sizes=f"{root}/sizes")
        raws.append(RawConfig(kind="luperson_videos", path=root, detections=f"{root}/dets", listed=listed).arguments())
    with pytest.raises(OSError, match="no more power"):
        Rounds(output, {"raw": raws[0]}, list("abcde"), 2).run(writer(output, [], stop_before="e"))
    assert all(unfinished(output, {"raw": raw}) for raw in raws)
    assert len(again(output, {"raw": raws[1]})[0]) == 1
    raws[1]["detections"] = f"{tmp_path}/link/other"
    (problem,) = differences({"raw": raws[0]}, {"raw": raws[1]}).split(", raw")
    assert problem == f"raw.detections was '{tmp_path}/real/in/dets', now '{tmp_path}/link/other'"


def test_one_round_leaves_no_record(tmp_path):
    output = open_storage(str(tmp_path))
    again(output, size=5)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-a-b-c-d-e.parquet"]


def test_the_marks_are_the_same_in_every_process(tmp_path):
    """Units hold arrays, locations and texts; if their pickles differed between processes, nothing would ever be continued."""
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.platform.engine.ingest.test_listed_videos import source\n"
        "from tests.platform.engine.ingest.published_videos import write_published, table\n"
        "from platform.engine.ingest.rounds import Rounds\nfrom pathlib import Path\nimport pickle\n"
        f"root = Path({str(tmp_path)!r})\n"
        "if not (root / 'dets').exists():\n"
        "    write_published(root, ['a+b+c', 'a+b+d'])\n"
        "    (root / 'dets.pkl').write_bytes(pickle.dumps({'a+b+c': table(), 'a+b+d': table()}))\n"
        "for dets in ('dets', 'dets.pkl'):\n"
        "    print('mark', *Rounds(None, {'x': 1}, source(root, detections=dets).plan(0).units, 1).marks)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)
    ]
    marks = [[line for line in run.stdout.splitlines() if line.startswith("mark")] for run in runs]
    assert marks[0] == marks[1] and len(marks[0]) == 2
