"""Shards with rows that are not images, in every program: skipped, counted, reported, and limited to a share."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from platform import cluster, evaluate, finetune, score, select
from platform.engine.config.compose import load_config
from platform.engine.data.image_set import ImageSet
from platform.engine.data.shards import read_manifest, read_rows, verify
from platform.engine.errors import UserError
from platform.engine.inference.models import load_model
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import Location, StorageConfig, open_storage
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from reidssl.metrics.ranking import rank
from reidssl.selection.cfs import cfs_scores
from tests.fixtures_runs import embed_all, finetune_config
from tests.fixtures_shards import with_images

TINY = ["pool.actors=1", "pool.batch=32"]
LENIENT = "pool.max_corrupt_share=0.1"


@pytest.fixture(scope="module")
def junk_shards(tmp_path_factory, tiny_shards) -> tuple[Location, list[str]]:
    """(the pre-training set with junk in both shards, the keys of the junk rows)."""
    keys = read_rows(tiny_shards, ["key"])["key"].to_pylist()
    bad = [keys[place] for place in (0, 7, 60)]
    location = open_storage(str(tmp_path_factory.mktemp("data") / "junk"))
    with_images(tiny_shards, location, dict(zip(bad, (b"", b"no image", b"\xff\xd8\xff cut"), strict=True)))
    assert verify(location) == []
    return location, bad


def features_of(model, location: Location, splits, share: float = 0.2):
    images = ImageSet(location, splits, (64, 32), max_corrupt_share=share)
    return images, embed_all(load_model(str(model), StorageConfig()), images)


def score_config(data: Location, source, target, output, *overrides: str):
    return load_config(
        score.ScoreConfig,
        "score",
        [f"data={data.uri}", f"source_proxy={source}", f"target_proxy={target}", f"output={output}", *TINY, *overrides],
    )


def select_config(data: Location, scores, output, *overrides: str):
    return load_config(select.SelectConfig, "select", [f"data={data.uri}", f"scores={scores}", f"output={output}", *overrides])


def check_scores(output, location: Location, bad: list[str], expected: np.ndarray, summary: dict) -> None:
    keys = read_rows(location, ["key"])["key"].to_pylist()
    table = read_scores(open_storage(str(output)), read_manifest(location))
    assert table["key"].to_pylist() == keys  # a row for each key
    assert [key for key, value in zip(keys, table["score"].to_pylist(), strict=True) if value is None] == bad
    assert (np.abs(table["score"].drop_null().to_numpy() - expected) < 2e-5).mean() > 0.97
    assert summary["total"] == 90 and summary["corrupt_images"] == 3 and np.isfinite(summary["mean"])
    assert [problem.split("'")[1] for problem in summary["corrupt"]] == bad and "empty file" in summary["corrupt"][0]
    assert len(summary["quantiles"]) == 7 and np.isfinite(summary["quantiles"]).all() and 0 < summary["auc_planted"] < 1


def test_scores_and_the_selection(tmp_path, ray_session, junk_shards, tiny_backbone, other_backbone, capsys):
    location, bad = junk_shards
    output = tmp_path / "scores"
    with pytest.raises(UserError, match=r"of the 90 images of .*junk cannot be decoded, more than pool.max_corrupt_share allows"):
        score.main(score_config(location, tiny_backbone, other_backbone, output))
    summary = score.main(
        score_config(location, tiny_backbone, other_backbone, output, LENIENT)
    )  # continues where the strict run stopped
    images, source = features_of(tiny_backbone, location, ["train"])
    _, target = features_of(other_backbone, location, ["train"])
    check_scores(output, location, bad, cfs_scores(source, target).numpy(), summary)
    assert f"set aside: image '{bad[0]}' cannot be decoded (empty file)" in capsys.readouterr().out
    for fraction, count in ((1.0, 87), (0.5, 44)):
        selected = select.main(select_config(location, output, tmp_path / f"selection-{fraction}", f"fraction={fraction}"))
        index = pq.read_table(tmp_path / f"selection-{fraction}" / "index.parquet")
        assert not set(index["key"].to_pylist()) & set(bad) and index.num_rows == selected["selected"] == count
        assert (selected["total"], selected["corrupt_images"]) == (90, 3) and np.isfinite(index["score"].to_numpy()).all()
    assert set(index["key"].to_pylist()) < set(images.keys)


@pytest.mark.slow
def test_a_part_with_bad_rows_counts_as_complete(tmp_path, ray_session, junk_shards, tiny_backbone, other_backbone, capsys):
    """The other part is scored again."""
    config = score_config(junk_shards[0], tiny_backbone, other_backbone, tmp_path, LENIENT)
    summary = score.main(config)
    (tmp_path / "summary.json").unlink()
    kept, lost = (tmp_path / "parts" / entry.name for entry in read_manifest(junk_shards[0]).files)
    before = kept.stat().st_mtime_ns
    lost.unlink()
    again = score.main(config)
    assert "55 scored before" in capsys.readouterr().out and kept.stat().st_mtime_ns == before
    assert again["corrupt"] == summary["corrupt"] and again["mean"] == pytest.approx(summary["mean"])


@pytest.mark.slow
def test_neighborhoods(tmp_path, ray_session, junk_shards, tiny_backbone, other_backbone):
    location, bad = junk_shards
    output = tmp_path / "scores"
    summary = score.main(score_config(location, tiny_backbone, other_backbone, output, "measure=neighborhood", "k=7", LENIENT))
    features = [features_of(model, location, ["train"])[1] for model in (tiny_backbone, other_backbone)]
    check_scores(output, location, bad, cfs_scores(*features, "neighborhood", 7).numpy(), summary)


def test_clusters(tmp_path, ray_session, junk_shards, tiny_backbone):
    location, bad = junk_shards
    config = load_config(
        cluster.ClusterProgramConfig,
        "cluster",
        [
            f"checkpoint={tiny_backbone}",
            f"data={location.uri}",
            f"output={tmp_path}",
            "cluster.k1=6",
            "cluster.k2=2",
            "cluster.eps=0.55",
            "cluster.min_samples=2",
            *TINY,
            LENIENT,
        ],
    )
    summary = cluster.main(config)
    images, features = features_of(tiny_backbone, location, ["train"])
    expected = pseudo_labels(features, ClusterConfig(k1=6, k2=2, eps=0.55, min_samples=2))
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    found = {row["key"]: row["label"] for row in rows if not row["problem"]}
    assert list(found) == images.keys and len(rows) == 90
    np.testing.assert_array_equal(list(found.values()), expected.labels)
    assert [(row["key"], row["label"]) for row in rows if row["problem"]] == [(key, -1) for key in bad]
    assert (summary["images"], summary["corrupt_images"], summary["outliers"]) == (90, 3, expected.num_outliers)


@pytest.fixture(scope="module")
def junk_labeled(tmp_path_factory, tiny_labeled) -> Location:
    """The labeled set with one junk image in train, one in query and two in gallery."""
    keys = {split: read_rows(tiny_labeled, ["key"], split=split)["key"].to_pylist() for split in ("train", "query", "gallery")}
    bad = [keys["train"][5], keys["query"][2], keys["gallery"][0], keys["gallery"][17]]
    location = open_storage(str(tmp_path_factory.mktemp("data") / "junk-labeled"))
    return with_images(tiny_labeled, location, dict.fromkeys(bad, b"junk"))


def test_evaluation(tmp_path, ray_session, junk_labeled, tiny_backbone, capsys):
    arguments = [f"checkpoints=[{tiny_backbone}]", f"test_sets=[{junk_labeled.uri}]", f"output={tmp_path}", *TINY]
    (row,) = evaluate.main(load_config(evaluate.EvaluateProgramConfig, "evaluate", [*arguments, LENIENT]))
    query, of_query = features_of(tiny_backbone, junk_labeled, ["query"])
    gallery, of_gallery = features_of(tiny_backbone, junk_labeled, ["gallery"])
    expected = rank(of_query, query.pids, query.camids, of_gallery, gallery.pids, gallery.camids)
    assert row["mAP"] == pytest.approx(expected.mAP, abs=1e-6) and row["gallery"] == 16 and row["queries"] <= 17
    assert row["corrupt_images"] == 3 and row["left_out"] == {"query": 1, "gallery": 2} and len(row["corrupt"]) == 3
    assert "left out: 1 query and 2 gallery images that cannot be decoded" in capsys.readouterr().out
    shown = {key for ranking in row["rankings"] for key in (ranking["query"], *ranking["matches"])}
    assert not any(key in problem for key in shown for problem in row["corrupt"])
    assert json.loads((tmp_path / "evaluation.json").read_text())[0]["corrupt"] == row["corrupt"]


def test_finetuning(tmp_path, ray_session, junk_labeled, tiny_backbone, capsys):
    """In USL the junk image is in no cluster and no batch, and the junk query and gallery images are in no ranking."""
    output = tmp_path / "usl"
    summary = finetune.main(
        finetune_config(
            junk_labeled, output, "setting=usl", f"checkpoint={tiny_backbone}", "unsupervised.epochs=1", "max_corrupt_share=0.15"
        )
    )
    assert summary["corrupt_images"] == 4 and summary["gallery"] == 16 and len(summary["corrupt"]) == 4
    assert capsys.readouterr().out.count("set aside: image '") == 4
    assert 0 < summary["mAP"] <= 1
