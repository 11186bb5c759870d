"""Metrics and rankings of a labeled test set, from features."""

import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from platform.engine.data.image_set import ImageSet
from platform.engine.data.shards import read_manifest, write_manifest, write_shard
from platform.engine.errors import UserError
from platform.engine.inference.evaluation import EvaluateConfig, Labels, evaluate_features, options_of, require_judgeable
from platform.engine.storage.location import Location, open_storage
from reidssl.metrics.reranking import rank_reranked


@pytest.fixture(scope="module")
def sets(tiny_labeled) -> tuple[ImageSet, ImageSet]:
    query, gallery = (ImageSet(tiny_labeled, [split], (64, 32)) for split in ("query", "gallery"))
    return query, gallery


def features_of(images: ImageSet, noise: float) -> torch.Tensor:
    identities = torch.from_numpy(np.unique(images.pids, return_inverse=True)[1])
    exact = F.one_hot(identities, 12).float()
    return F.normalize(exact + noise * torch.randn(exact.shape, generator=torch.Generator().manual_seed(len(images))), dim=1)


def test_perfect_features_give_perfect_numbers(sets):
    found = evaluate_features(*sets, features_of(sets[0], 0.01), features_of(sets[1], 0.01), EvaluateConfig())
    assert [found[name] for name in ("mAP", "rank1", "rank5", "rank10", "mINP")] == pytest.approx([1.0] * 5)
    assert found["queries"] == found["gallery"] == 18 and "reranked" not in found


def test_unknown_cameras_are_said_with_the_figures(sets):
    query, gallery = (copy.copy(images) for images in sets)
    features = features_of(query, 0.6), features_of(gallery, 0.6)
    assert "camera_note" not in evaluate_features(query, gallery, *features, EvaluateConfig())
    gallery.camids = np.where(np.arange(len(gallery)) < 4, -1, gallery.camids)
    some = evaluate_features(query, gallery, *features, EvaluateConfig())["camera_note"]
    assert some.startswith("0 of 18 query and 4 of 18 gallery images have no camera: matches within one camera count")
    query.camids, gallery.camids = np.full(18, -1), np.full(18, -1)
    assert evaluate_features(query, gallery, *features, EvaluateConfig())["camera_note"].startswith("no cameras are known")


def test_rankings_are_those_of_the_features(sets):
    query, gallery = sets
    features = features_of(query, 0.6), torch.roll(features_of(gallery, 0.6), 1, 0)
    found = evaluate_features(query, gallery, *features, EvaluateConfig(reranking=True))
    assert 0.05 < found["mAP"] < 0.95
    place = {key: index for index, key in enumerate(gallery.keys)}
    rows = {key: index for index, key in enumerate(query.keys)}
    assert len(found["rankings"]) == 8 and len({entry["query"] for entry in found["rankings"]}) == 8
    for entry in found["rankings"]:
        row, matches = rows[entry["query"]], [place[key] for key in entry["matches"]]
        similarity = features[0][row] @ features[1].T
        kept = [
            i
            for i in similarity.argsort(descending=True).tolist()
            if gallery.pids[i] != query.pids[row] or gallery.camids[i] != query.camids[row]
        ]  # junk is left out
        assert matches == kept[:10]
        assert entry["correct"] == [bool(gallery.pids[i] == query.pids[row]) for i in matches]
    assert any(any(entry["correct"]) for entry in found["rankings"])
    reranked = rank_reranked(features[0], query.pids, query.camids, features[1], gallery.pids, gallery.camids)
    assert found["reranked"] == {"mAP": pytest.approx(float(reranked.mAP)), "rank1": pytest.approx(float(reranked.rank1))}


def test_a_gallery_without_any_match_is_an_error(sets, tiny_labeled):
    query, gallery = sets[0], ImageSet(tiny_labeled, ["train"], (64, 32))  # other people
    with pytest.raises(UserError, match=r"labeled cannot be judged: no query has a true match in another camera"):
        evaluate_features(query, gallery, torch.randn(18, 4), torch.randn(36, 4), EvaluateConfig())
    broken = features_of(sets[1], 0.1)
    broken[3] = torch.nan
    with pytest.raises(UserError, match=r"labeled cannot be judged: .*gallery"):
        evaluate_features(*sets, features_of(sets[0], 0.1), broken, EvaluateConfig())


def test_everything_that_can_be_asked_for(sets):
    query, gallery = sets
    features = features_of(query, 0.6), features_of(gallery, 0.6)
    plain = evaluate_features(query, gallery, *features, EvaluateConfig())
    assert not {"roc", "camera_pairs", "average_precision"} & set(plain)
    everything = EvaluateConfig(roc=True, cameras=True, per_query=True, block=5, gallery_block=7)
    found = evaluate_features(query, gallery, *features, everything)
    assert found["rankings"] == plain.pop("rankings") and found["evaluation"] == plain.pop("evaluation")
    assert {name: found[name] for name in plain} == pytest.approx(plain)
    assert list(found["roc"]) == ["1e-04", "1e-03", "1e-02"] and 0 < found["roc"]["1e-02"] <= 1
    assert set(found["average_precision"]) == set(query.keys)
    assert np.mean(list(found["average_precision"].values())) == pytest.approx(found["mAP"])
    pairs = found["camera_pairs"]
    assert pairs["query_cameras"] == sorted(set(query.camids.tolist()))
    table = np.asarray(pairs["mAP"], float)
    same = np.equal.outer(pairs["query_cameras"], pairs["gallery_cameras"])
    assert np.isnan(table[same]).all() and np.isfinite(table[~same]).any()
    expanded = evaluate_features(query, gallery, *features, EvaluateConfig(expansion=2))
    assert expanded["mAP"] != found["mAP"]
    assert expanded["evaluation"] == {"expansion": {"images": 2, "alpha": 3.0}, "flip": None, "reranking": None, "resize": None}
    assert options_of(EvaluateConfig(reranking=True)) == {
        "expansion": None,
        "flip": None,
        "reranking": {"k1": 20, "k2": 6, "weight": 0.3},
        "resize": None,
    }
    assert options_of(EvaluateConfig(resize="bilinear"))["resize"] == "bilinear"
    with pytest.raises(ValueError, match="resize must be one of bicubic, bilinear: got 'nearest'"):
        EvaluateConfig(resize="nearest")


def test_labels_without_images_are_those_of_the_image_set(sets, tiny_labeled):
    for images, split in zip(sets, ("query", "gallery"), strict=True):
        labels = Labels(tiny_labeled, split)
        assert labels.keys == images.keys and len(labels) == len(images)
        assert (labels.pids == images.pids).all() and (labels.camids == images.camids).all()


def relabeled(origin, location, change) -> Location:
    """A copy of a data set with other labels: `change` takes (split, pid, camid) arrays and returns them."""
    manifest = read_manifest(origin)
    table = pa.concat_tables(pq.read_table((origin / entry.name).path) for entry in manifest.files)
    labels = change(*(np.asarray(table[name].to_pylist()) for name in ("split", "pid", "camid")))
    for name, values in zip(("split", "pid", "camid"), labels, strict=True):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    splits = {str(name): int(count) for name, count in zip(*np.unique(labels[0], return_counts=True), strict=True)}
    write_manifest(location, replace(manifest, files=[write_shard(location, table, 16)], splits=splits))
    return location


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p, c: (s, p, np.zeros_like(c) + 3), r"all images of the 6 people .* come from one camera \(3\), and a match"),
        (lambda s, p, c: (s, np.where(s == "query", p + 100, p), c), r"none of the 6 people of split query is in split gallery"),
        (lambda s, p, c: (s, np.where(s == "query", -1, p), c), r"none of its 18 query images has an identity"),
        (lambda s, p, c: (s, np.where(s == "gallery", -1, p), c), r"none of the 6 people of split query is in split gallery"),
        (lambda s, p, c: (s, p, p), r"none of its 18 query images has an image of the same person in another camera"),
        (
            lambda s, p, c: (np.where(s == "query", "train", s), p, c),
            r"has no images of split query; its splits are gallery, train",
        ),
    ],
)
def test_what_cannot_be_judged_is_known_from_the_labels(tiny_labeled, tmp_path, change, message):
    location = relabeled(tiny_labeled, open_storage(str(tmp_path / "set")), change)
    with pytest.raises(UserError, match=message) as caught:
        require_judgeable(location)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda s, p, c: (s, p, c),
        lambda s, p, c: (s, p, np.full_like(c, -1)),  # unknown cameras: nothing is junk
        lambda s, p, c: (s, np.where((s == "query") & (np.arange(len(p)) != np.flatnonzero(s == "query")[0]), -1, p), c),
    ],
)
def test_what_can_be_judged_passes(tiny_labeled, tmp_path, change):
    """The check agrees with the ranking, even for a single query."""
    location = relabeled(tiny_labeled, open_storage(str(tmp_path / "set")), change)
    require_judgeable(location)
    query, gallery = Labels(location, "query"), Labels(location, "gallery")
    assert evaluate_features(query, gallery, torch.randn(18, 4), torch.randn(18, 4), EvaluateConfig())["queries"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 0}, "^block must be at least 1 query: got 0"),
        ({"gallery_block": 0}, "^gallery_block must be at least 1 image: got 0"),
        ({"expansion": -1}, "^expansion must be 0 or more: got -1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**changes)
