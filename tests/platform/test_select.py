"""The selected subset: exact, from scores or a published list, and refusals."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from platform.engine.config.compose import load_config
from platform.engine.data.parts import write_table
from platform.engine.data.shards import read_manifest, read_rows, verify
from platform.engine.errors import ConfigError, UserError
from platform.engine.selection.kept_features import KeptFeatures
from platform.engine.selection.materialize import materialize
from platform.engine.selection.rankings import random_ranking
from platform.engine.storage.location import open_storage
from platform.engine.stream.units import read_units
from platform.select import SelectConfig, main
from reidssl.seeding import sample_seeds, uniforms
from reidssl.selection.cfs import groups_of


def config_of(data, output, *overrides: str) -> SelectConfig:
    return load_config(SelectConfig, "select", [f"data={data.uri}", f"output={output}", *overrides])


@pytest.fixture(scope="module")
def keys(tiny_shards) -> list[str]:
    return read_rows(tiny_shards, ["key"])["key"].to_pylist()


def write_scores(folder: Path, data, scores: np.ndarray, keys: list[str]) -> Path:
    """Write a folder like that of platform.score."""
    manifest, start = read_manifest(data), 0
    for entry in manifest.files:
        span = slice(start, start + entry.rows)
        write_table(
            open_storage(str(folder / "parts" / entry.name)),
            pa.table({"key": keys[span], "score": pa.array(scores[span].astype(np.float32))}),
        )
        start += entry.rows
    open_storage(str(folder / "summary.json")).write_json({"data_checksum": manifest.checksum})
    return folder


@pytest.fixture(scope="module")
def scores(keys) -> np.ndarray:
    """Scores with ties, some of them at the end of the subset."""
    return np.round(np.random.default_rng(5).normal(size=len(keys)), 1).astype(np.float32)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_shards, keys, scores) -> Path:
    return write_scores(tmp_path_factory.mktemp("select") / "scores", tiny_shards, scores, keys)


def best(keys: list[str], scores: np.ndarray, count: int) -> set[str]:
    return {key for _, key in sorted(zip(-scores, keys, strict=True))[:count]}


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 45), (0.25, 23), (0.011, 1), (1.0, 90)])
def test_the_index_is_exact(scored, tiny_shards, keys, scores, tmp_path, fraction, count):
    output = tmp_path / "selection"
    summary = main(config_of(tiny_shards, output, f"scores={scored}", f"fraction={fraction}"))
    index = pq.read_table(output / "index.parquet").to_pylist()
    assert {row["key"] for row in index} == best(keys, scores, count) and len(index) == summary["selected"] == count
    assert [row["key"] for row in index] == [key for key in keys if key in best(keys, scores, count)]  # in the order of storage
    score_of = dict(zip(keys, scores, strict=True))
    assert all(row["score"] == score_of[row["key"]] for row in index)
    for row in index:  # the index points to the rows of the chosen images
        group = pq.ParquetFile((tiny_shards / row["file"]).path).read_row_group(row["row_group"], columns=["key"])
        assert group["key"][row["row"]].as_py() == row["key"]
    assert summary["by"]["kind"] == "scores" and summary["by"]["uri"] == str(scored)
    assert summary["threshold"] == min(row["score"] for row in index) and summary["total"] == 90
    planted = dict(zip(keys, read_rows(tiny_shards, ["planted"])["planted"].to_pylist(), strict=True))
    assert summary["planted_share"]["all"] == pytest.approx(np.mean(list(planted.values())))
    assert summary["planted_share"]["selected"] == pytest.approx(np.mean([planted[row["key"]] for row in index]))


def test_pre_training_reads_exactly_the_selected_rows(scored, tiny_shards, keys, scores, tmp_path):
    main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}", "fraction=0.2"))
    units = read_units(tiny_shards, open_storage(str(tmp_path / "selection")))
    found = []
    for unit in units:
        group = pq.ParquetFile((tiny_shards / unit.file).path).read_row_group(unit.row_group, columns=["key"])["key"].to_pylist()
        assert unit.num_rows == len(unit.rows) > 0 and list(unit.rows) == sorted(set(unit.rows.tolist()))
        found += [group[row] for row in unit.rows]
    assert len(found) == 18 and set(found) == best(keys, scores, 18)


def test_a_selection_of_another_data_set_is_refused(scored, tiny_shards, tiny_labeled, tmp_path):
    main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}"))
    with pytest.raises(UserError, match=r"was made from .*tiny as it was then .*run platform.select on this data set"):
        read_units(tiny_labeled, open_storage(str(tmp_path / "selection")))


def test_what_is_no_selection_is_refused(scored, tiny_shards, tmp_path):
    """Refused: a data set in its place, a folder without an index, a truncated index, an index with other columns."""
    with pytest.raises(
        UserError,
        match=r"tiny/manifest\.json is not what belongs there, it has no 'data_checksum' .*"
        r"give the folder that platform\.select wrote as data\.selection",
    ):
        read_units(tiny_shards, tiny_shards)
    main(config_of(tiny_shards, tmp_path, f"scores={scored}"))
    index, selection = tmp_path / "index.parquet", open_storage(str(tmp_path))
    whole = index.read_bytes()
    for content in (whole[:100], whole[:-20], whole[:50] + bytes(200) + whole[250:], b""):
        index.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*index\.parquet: .*run platform\.select again"):
            read_units(tiny_shards, selection)
    pq.write_table(pa.table({"key": ["a"]}), index)
    with pytest.raises(UserError, match=r"cannot read .*index\.parquet: .*run platform\.select again"):
        read_units(tiny_shards, selection)
    index.unlink()
    with pytest.raises(UserError, match=r"index\.parquet: it does not exist.*run platform\.select again"):
        read_units(tiny_shards, selection)


def test_a_complete_selection_is_only_reported_and_another_refused(scored, tiny_shards, tmp_path, capsys):
    first = main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}"))
    assert main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}")) == first
    printed = capsys.readouterr().out
    assert "is complete already" in printed and "has changed" not in printed
    stored = tmp_path / "selection" / "summary.json"
    stored.write_text(stored.read_text().replace(first["data_checksum"], "0123456789abcdef"))
    main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}"))
    assert f"has changed since (checksum 0123456789ab, now {first['data_checksum'][:12]})" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  fraction: 0.5 -> 0.4\n"):
        main(config_of(tiny_shards, tmp_path / "selection", f"scores={scored}", "fraction=0.4"))


# ---- published lists


def published(folder: Path, entries: object) -> Path:
    file = folder / "list.pkl"
    file.write_bytes(pickle.dumps(entries))
    return file


def test_a_published_list_decides_alone(tiny_shards, keys, tmp_path, capsys):
    order = [keys[place] for place in np.random.default_rng(1).permutation(len(keys))]
    listed = order[5:]
    file = published(tmp_path, [key.removeprefix("images/") for key in [*listed[:50], "of_another_crop.jpg", *listed[50:]]])
    summary = main(config_of(tiny_shards, tmp_path / "a", f"list={file}", "fraction=0.5"))
    assert {row["key"] for row in pq.read_table(tmp_path / "a" / "index.parquet").to_pylist()} == set(listed[:45])
    assert summary["selected"] == 45
    assert "1 of 86 entries of the list name no image of the data set, e.g. 'of_another_crop.jpg'" in capsys.readouterr().out
    assert summary["by"] == {
        "kind": "list",
        "uri": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "entries": 86,
        "absent_from_data": 1,
        "absent_from_list": 5,
    }


def test_a_list_that_is_too_short_is_never_filled_up(tiny_shards, keys, tmp_path, capsys):
    file = published(tmp_path, keys[:30])
    short = r"list.pkl names 30 of the 90 images of .*tiny, fraction=0.5 asks for 45"
    with pytest.raises(UserError, match=short + r": set fraction=0.3333 or less, allow_short=true to keep the 30, or"):
        main(config_of(tiny_shards, tmp_path / "a", f"list={file}"))
    assert not (tmp_path / "a").exists()
    summary = main(config_of(tiny_shards, tmp_path / "a", f"list={file}", "allow_short=true"))
    assert pq.read_table(tmp_path / "a" / "index.parquet")["key"].to_pylist() == keys[:30] and summary["selected"] == 30
    assert "the 30 are kept (allow_short)" in capsys.readouterr().out
    assert main(config_of(tiny_shards, tmp_path / "b", f"list={file}", "fraction=0.3333"))["selected"] == 30
    with pytest.raises(ConfigError, match="allow_short is for a list or"):
        config_of(tiny_shards, tmp_path / "c", "random=true", "allow_short=true")


def test_a_list_of_absolute_windows_paths_is_understood_and_its_beginning_said(tiny_shards, keys, tmp_path, capsys):
    rows = ["C:\\people\\" + key.replace("/", "\\") for key in keys[::-1]]
    main(config_of(tiny_shards, tmp_path / "a", f"list={published(tmp_path, rows)}"))
    assert pq.read_table(tmp_path / "a" / "index.parquet")["key"].to_pylist() == keys[45:]
    assert "select: the list has 'people/" in capsys.readouterr().out


def test_a_list_that_names_an_image_twice_is_refused(tiny_shards, keys, tmp_path):
    for again in (keys[0], f"./{keys[0]}"):
        with pytest.raises(UserError, match=rf"list.pkl: 1 images are named more than once, e\.g\. '{keys[0]}'"):
            main(config_of(tiny_shards, tmp_path / "a", f"list={published(tmp_path, [*keys, again])}"))


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("option", ["list", "reference"])
def test_a_pickle_that_runs_code_is_refused(scored, tiny_shards, tmp_path, option):
    file = published(tmp_path, ["a.jpg", Malicious(tmp_path / "owned")])
    overrides = [f"{option}={file}"] + ([f"scores={scored}"] if option == "reference" else [])
    with pytest.raises(UserError, match=r"list.pkl: .*refused: its pickle loads posix\.mkdir"):
        main(config_of(tiny_shards, tmp_path / "selection", *overrides))
    assert not (tmp_path / "owned").exists() and not (tmp_path / "selection").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["of/another.jpg", "data/set.jpg"], r"none of the 90 keys is in .*: the list belongs to another data set"),
        ({"a.jpg": 1}, r"must hold a non-empty list of image paths: got dict"),
        (["a.jpg", 7], r"must hold strings only: entry 1 is int"),
        ([], r"must hold a non-empty list"),
    ],
)
def test_other_lists_are_refused(tiny_shards, tmp_path, entries, message):
    file = published(tmp_path, entries)
    with pytest.raises(UserError, match=message):
        main(config_of(tiny_shards, tmp_path / "selection", f"list={file}"))
    assert not (tmp_path / "selection").exists()


def test_a_list_that_is_no_pickle_or_not_there(tiny_shards, tmp_path):
    (tmp_path / "list.pkl").write_text("a.jpg\nb.jpg\n")
    for name, message in (("list.pkl", "is not a readable pickle"), ("nowhere.pkl", "nowhere.pkl")):
        with pytest.raises(UserError, match=message):
            main(config_of(tiny_shards, tmp_path / "selection", f"list={tmp_path / name}"))


# ---- agreement


def test_agreement_with_a_reference(tiny_shards, keys, tmp_path):
    distinct = np.random.default_rng(2).permutation(len(keys)).astype(np.float32)
    folder = write_scores(tmp_path / "scores", tiny_shards, distinct, keys)
    order = [keys[place] for place in np.argsort(-distinct)]
    for name, entries, spearman, overlap in (("same", order, 1.0, 1.0), ("opposite", order[::-1], -1.0, 0.0)):
        file = published(tmp_path, entries)
        summary = main(config_of(tiny_shards, tmp_path / name, f"scores={folder}", f"reference={file}", "compare_at=[0.1]"))
        assert summary["agreement"]["spearman"] == pytest.approx(spearman)
        assert summary["agreement"]["overlaps"] == {"0.1": overlap, "0.5": overlap} and summary["agreement"]["num_compared"] == 90
    file = published(tmp_path, ["of/another.jpg", "data/set.jpg"])
    with pytest.raises(UserError, match=r"none of the 90 keys is in .*list.pkl"):
        main(config_of(tiny_shards, tmp_path / "other", f"scores={folder}", f"reference={file}"))


def test_any_two_rankings_are_compared(scored, tiny_shards, keys, scores, tmp_path, capsys):
    """Scores, a list of a third of the images, the better half and the worse half."""
    order = sorted(range(90), key=lambda place: (-scores[place], keys[place]))
    places = {"scores": scored, "list": published(tmp_path, [keys[place] for place in order[:30]])}
    for name, more in (("half", ()), ("worse", ("inverse=true",))):
        places[name] = tmp_path / name
        main(config_of(tiny_shards, places[name], f"scores={scored}", *more))
    output = tmp_path / "agreement"
    summary = main(config_of(tiny_shards, output, f"compare=[{','.join(str(place) for place in places.values())}]"))
    names = {str(place): name for name, place in places.items()}
    found = {(names[pair["first"]], names[pair["second"]]): pair for pair in summary["pairs"]}
    assert len(found) == 6 and summary["compared"][str(tmp_path / "half")]["kind"] == "selection"
    counts = {" ".join(pair): one["num_compared"] for pair, one in found.items()}
    halves = {"scores half": 45, "scores worse": 45, "half worse": 0}
    assert counts == {**halves, "scores list": 30, "list half": 30, "list worse": 0}
    assert found["scores", "half"]["spearman"] == pytest.approx(1.0) == -found["scores", "worse"]["spearman"]
    assert found["scores", "list"]["overlaps"]["0.5"] == 1.0 and found["half", "worse"]["spearman"] is None
    assert "0 images in common, too few or too equal" in capsys.readouterr().out and not (output / "index.parquet").exists()
    with pytest.raises(UserError, match=r"it is neither a published list \(a file\), nor a folder written by"):
        main(config_of(tiny_shards, tmp_path / "b", f"compare=[{scored},{tiny_shards.uri}]"))
    with pytest.raises(ConfigError, match="compare needs two rankings or more"):
        config_of(tiny_shards, tmp_path / "b", f"compare=[{scored}]")


# ---- other choices than the best fraction


def kept_keys(folder) -> set[str]:
    return set(pq.read_table(folder / "index.parquet")["key"].to_pylist())


def test_count_threshold_and_inverse(scored, tiny_shards, keys, scores, tmp_path):
    summary = main(config_of(tiny_shards, tmp_path / "count", f"scores={scored}", "count=20"))
    assert kept_keys(tmp_path / "count") == best(keys, scores, 20) and summary["fraction"] == pytest.approx(20 / 90)
    limit = float(np.sort(scores)[60])
    main(config_of(tiny_shards, tmp_path / "threshold", f"scores={scored}", f"threshold={limit!r}"))
    assert kept_keys(tmp_path / "threshold") == {key for key, score in zip(keys, scores, strict=True) if score >= limit}
    summary = main(config_of(tiny_shards, tmp_path / "worst", f"scores={scored}", "inverse=true", "fraction=0.3"))
    assert kept_keys(tmp_path / "worst") == best(keys, -scores, 27)
    assert summary["threshold"] == max(row["score"] for row in pq.read_table(tmp_path / "worst" / "index.parquet").to_pylist())
    main(config_of(tiny_shards, tmp_path / "below", f"scores={scored}", "inverse=true", f"threshold={limit!r}"))
    assert kept_keys(tmp_path / "below") == {key for key, score in zip(keys, scores, strict=True) if score <= limit}
    file = published(tmp_path, keys[:30])
    main(config_of(tiny_shards, tmp_path / "end", f"list={file}", "inverse=true", "count=10"))
    assert kept_keys(tmp_path / "end") == set(keys[20:30])  # the end of the list, and not the images that it does not name


def test_a_draw_among_the_best_leaves_out_the_worst_and_prefers_nobody(scored, tiny_shards, keys, scores, tmp_path):
    kept = {}
    for seed in (0, 1):
        given = [f"scores={scored}", "among=0.8", "fraction=0.4", f"seed={seed}", "write_list=true"]
        summary = main(config_of(tiny_shards, tmp_path / f"drawn-{seed}", *given))
        kept[seed] = kept_keys(tmp_path / f"drawn-{seed}")
        assert kept[seed] < best(keys, scores, 72) and len(kept[seed]) == 36 and summary["fraction"] == pytest.approx(0.4)
        assert 10 < len(kept[seed] & best(keys, scores, 36)) < 26  # half of them, by chance
        by_key = dict(zip(keys, scores, strict=True))
        listed = pickle.loads((tmp_path / f"drawn-{seed}" / "list.pkl").read_bytes())
        values = [by_key[name if name in by_key else f"images/{name}"] for name in listed]
        assert values == sorted(values, reverse=True)  # the list is by score all the same
    assert kept[0] != kept[1]
    with pytest.raises(UserError, match=r"45 of the 90 images of .* can be selected, count=50 asks for 50: .*or raise among"):
        main(config_of(tiny_shards, tmp_path / "few", f"scores={scored}", "among=0.5", "count=50"))


def test_a_random_selection_tells_nothing_about_the_crops_of_its_images():
    keys = [f"people/{number}.jpg" for number in range(4000)]
    drawn = random_ranking(0, keys).values
    for stream in range(10):
        crops = uniforms(sample_seeds(0, 0, keys), 40, stream=stream)
        assert max(abs(np.corrcoef(drawn, column)[0, 1]) for column in crops.T) < 0.08
    grouped = np.zeros(len(keys))
    grouped[groups_of(keys, 2000, 0)[0]] = 1.0
    assert abs(np.corrcoef(drawn, grouped)[0, 1]) < 0.08


def test_choices_that_cannot_be(scored, tiny_shards, tmp_path):
    output = tmp_path / "selection"
    with pytest.raises(UserError, match=r"threshold=9 keeps no image: the scores in .* are from -\d\S* to \d"):
        main(config_of(tiny_shards, output, f"scores={scored}", "threshold=9"))
    with pytest.raises(UserError, match=r"90 of the 90 images of .* can be selected, count=91 .*: set count=90 or less$"):
        main(config_of(tiny_shards, output, f"scores={scored}", "count=91"))
    for said, overrides in (
        ("count and threshold exclude each other: got 5 and 0.5", [f"scores={scored}", "count=5", "threshold=0.5"]),
        ("threshold is for scores", ["random=true", "threshold=0.5"]),
        ("inverse is for scores and lists", ["random=true", "inverse=true"]),
        ("among draws a fraction or a count from the best", ["random=true", "among=0.5"]),
        ("among must be at least fraction \\(0.5\\), or 0 to take the best: got 0.4", [f"scores={scored}", "among=0.4"]),
        ("floor and threshold exclude each other", [f"scores={scored}", "stratify=folder", "floor=0.1", "threshold=0.5"]),
        ("floor is the share of a stratum that stratify=.*got floor=0.5 and stratify=''", [f"scores={scored}", "floor=0.5"]),
        ("give both or neither, got floor=0 and stratify='folder'", [f"scores={scored}", "stratify=folder"]),
        ("floor and among exclude each other", [f"scores={scored}", "stratify=folder", "floor=0.1", "among=0.6"]),
        ("similarity needs features: give scores=", ["random=true", "duplicates.similarity=0.5"]),
    ):
        with pytest.raises(ConfigError, match=said):
            config_of(tiny_shards, output, *overrides)
    assert not output.exists()


def test_every_folder_keeps_its_floor(scored, tiny_shards, keys, scores, tmp_path):
    folders = np.asarray([key.rpartition("/")[0] for key in keys])
    uneven = write_scores(tmp_path / "scores", tiny_shards, scores - 10 * (folders == folders[0]).astype(np.float32), keys)
    main(config_of(tiny_shards, tmp_path / "plain", f"scores={uneven}"))
    assert not any(key.startswith(f"{folders[0]}/") for key in kept_keys(tmp_path / "plain"))
    main(config_of(tiny_shards, tmp_path / "even", f"scores={uneven}", "stratify=folder", "floor=0.5"))
    kept = kept_keys(tmp_path / "even")
    assert len(kept) == 45 and len(set(folders)) > 4
    for name in set(folders):
        assert sum(key.startswith(f"{name}/") for key in kept) >= (folders == name).sum() // 2
    by_column = main(config_of(tiny_shards, tmp_path / "column", f"scores={uneven}", "stratify=planted", "floor=0.5"))
    assert by_column["planted_share"]["selected"] == pytest.approx(by_column["planted_share"]["all"], abs=0.02)
    with pytest.raises(UserError, match=r"has no column video; its columns are key, "):
        main(config_of(tiny_shards, tmp_path / "a", f"scores={scored}", "stratify=video", "floor=0.5"))
    with pytest.raises(UserError, match=r"scores: a floor of 0\.6 keeps 5\d images of \d strata, more than the 45 asked for"):
        main(config_of(tiny_shards, tmp_path / "a", f"scores={scored}", "stratify=planted", "floor=0.6"))


@pytest.fixture(scope="module")
def with_features(tmp_path_factory, tiny_shards, keys) -> Path:
    """Scores with kept features: image i + 1 looks like image i for every even i below 40."""
    features = np.random.default_rng(0).normal(size=(90, 16)).astype(np.float32)
    features[1:40:2] = features[0:40:2] + 0.01
    folder = write_scores(tmp_path_factory.mktemp("select") / "scores", tiny_shards, np.arange(90, dtype=np.float32), keys)
    start = 0
    for entry in read_manifest(tiny_shards).files:
        rows = slice(start, start + entry.rows)
        columns = {"key": np.asarray(keys[rows], object), "problem": np.full(entry.rows, "", object)}
        KeptFeatures(open_storage(str(folder))).write(entry.name, columns | {"source": features[rows], "target": features[rows]})
        start += entry.rows
    return folder


def test_near_duplicates_of_better_images_are_left_out(ray_session, with_features, scored, tiny_shards, keys, tmp_path, capsys):
    options = ("duplicates.similarity=0.99", "duplicates.k=3")
    summary = main(config_of(tiny_shards, tmp_path / "a", f"scores={with_features}", "count=70", *options))
    assert kept_keys(tmp_path / "a") == {*keys[1:40:2], *keys[40:]} and summary["near_duplicates"] == 20
    assert "20 near duplicates of better images are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"keeps no features: give a folder that platform\.score wrote with features=true"):
        main(config_of(tiny_shards, tmp_path / "c", f"scores={scored}", *options))


@pytest.mark.slow
def test_with_too_few_images_after_near_duplicates(ray_session, with_features, tiny_shards, keys, tmp_path):
    options = ("duplicates.similarity=0.99", "duplicates.k=3")
    short = r"70 of the 90 images of .* can be selected, fraction=0.8 asks for 72: set fraction=0.7777 or less, allow_short"
    with pytest.raises(UserError, match=short):
        main(config_of(tiny_shards, tmp_path / "b", f"scores={with_features}", "fraction=0.8", *options))
    more = ("fraction=0.8", "allow_short=true", "inverse=true")
    main(config_of(tiny_shards, tmp_path / "b", f"scores={with_features}", *more, *options))
    assert kept_keys(tmp_path / "b") == {*keys[:40:2], *keys[40:]}  # of a pair the worse one, which is now the better choice


def test_a_written_list_selects_the_same_images_in_the_same_order(scored, tiny_shards, keys, scores, tmp_path):
    main(config_of(tiny_shards, tmp_path / "a", f"scores={scored}", "write_list=true"))
    entries = pickle.loads((tmp_path / "a" / "list.pkl").read_bytes())
    order = [key for _, key in sorted(zip(-scores, keys, strict=True))][:45]
    assert [f"images/{entry}" for entry in entries] == order
    main(config_of(tiny_shards, tmp_path / "b", f"list={tmp_path / 'a' / 'list.pkl'}"))
    assert kept_keys(tmp_path / "b") == kept_keys(tmp_path / "a")


def test_materialized_shards_hold_exactly_the_selected_rows(ray_session, scored, tiny_shards, tmp_path, capsys):
    options = (f"scores={scored}", "fraction=0.4")
    summary = main(config_of(tiny_shards, tmp_path / "a", *options, "materialize=true"))
    made = open_storage(str(tmp_path / "a" / "data"))
    assert verify(made) == [] and summary["shards"]["data_checksum"] == read_manifest(made).checksum
    columns = ["key", "image", "height", "width", "pid", "camid", "split", "planted"]
    found, everything = read_rows(made, columns), read_rows(tiny_shards, columns)
    table = pq.read_table(tmp_path / "a" / "index.parquet")
    assert found == everything.filter(pc.is_in(everything["key"], table["key"])) and table.num_rows == 36
    assert read_manifest(made).splits == {"train": 36} and sum(unit.num_rows for unit in read_units(made)) == 36
    small = open_storage(str(tmp_path / "small"))
    again = materialize(tiny_shards, read_manifest(tiny_shards), table, small, 8 << 10)
    assert len(again.files) > 2 and read_rows(small, columns) == found
    capsys.readouterr()
    assert main(config_of(tiny_shards, tmp_path / "b", *options))["read_share"] == 1.0  # each row group has some of them
    assert "an epoch reads 100% of the data set's row groups; materialize=true" in capsys.readouterr().out


# ---- scores that do not fit


def test_scores_that_do_not_fit_are_refused(tiny_shards, tiny_labeled, scored, keys, scores, tmp_path):
    output = tmp_path / "selection"
    with pytest.raises(UserError, match=r"the scores in .* belong to another data set than .*labeled: score this one"):
        main(config_of(tiny_labeled, output, f"scores={scored}"))
    with pytest.raises(UserError, match=r"holds no finished scores: run platform.score to its end first"):
        main(config_of(tiny_shards, output, f"scores={tmp_path}/nowhere"))
    with pytest.raises(UserError, match=r"nothing to select by: give scores=.*, list=.* or random=true"):
        main(config_of(tiny_shards, output))
    assert not output.exists()
    broken = write_scores(tmp_path / "nan", tiny_shards, np.where(np.arange(90) == 7, np.nan, scores), keys)
    with pytest.raises(UserError, match=rf"nan: 1 of 90 scores are NaN, the first that of '{keys[7]}'"):
        main(config_of(tiny_shards, tmp_path / "a", f"scores={broken}"))
    renamed = write_scores(tmp_path / "renamed", tiny_shards, scores, [key + "x" for key in keys])
    with pytest.raises(UserError, match=r"the keys in .*renamed are not those of"):
        main(config_of(tiny_shards, tmp_path / "b", f"scores={renamed}"))
    with pytest.raises(ConfigError, match=r"scores, list, random and compare exclude each other"):
        config_of(tiny_shards, output, f"scores={scored}", "list=x.pkl")
    with pytest.raises(ConfigError, match=r"fraction must be in \(0, 1\]: got 0.0"):
        config_of(tiny_shards, output, "fraction=0")


def test_what_is_not_of_scores_is_refused(tiny_shards, scored, keys, scores, tmp_path):
    """Refused: the summary of another program, and a truncated part."""
    folder = write_scores(tmp_path / "scores", tiny_shards, scores, keys)
    part = next((folder / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read .*/scores/parts/shard-\w+\.parquet: "):
        main(config_of(tiny_shards, tmp_path / "a", f"scores={folder}"))
    (folder / "summary.json").write_text('{"mAP": 0.5}')
    with pytest.raises(UserError, match=r"summary\.json .*no 'data_checksum' \(it has: mAP\): give the folder that platform\."):
        main(config_of(tiny_shards, tmp_path / "b", f"scores={folder}"))


def test_a_random_subset_is_the_control(tiny_shards, keys, tmp_path):
    """The subset is a function of the seed and the keys, spread over all images and independent of the scores."""
    runs = {}
    for name, seed in (("a", 3), ("again", 3), ("b", 4)):
        summary = main(config_of(tiny_shards, tmp_path / name, "random=true", f"seed={seed}"))
        assert summary["selected"] == 45 and summary["by"] == {"kind": "random", "seed": seed} and "threshold" not in summary
        runs[name] = set(pq.read_table(tmp_path / name / "index.parquet")["key"].to_pylist())
    assert runs["a"] == runs["again"] != runs["b"] and len(runs["a"]) == 45
    assert 10 <= len(runs["a"] & set(keys[:45])) <= 35  # neither the first half nor the second
    with pytest.raises(ConfigError, match="scores, list, random and compare exclude each other: got scores and random"):
        config_of(tiny_shards, tmp_path / "c", "random=true", "scores=x")
