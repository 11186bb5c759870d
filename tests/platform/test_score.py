"""Scoring through its `main`: equal to a direct computation, resuming by shard, refusals."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from platform.engine.config.compose import load_config
from platform.engine.data.parts import as_array
from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.inference.models import load_model
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import StorageConfig, open_storage
from platform.score import ScoreConfig, main
from reidssl.augment.reid_augment import normalize
from reidssl.data.decode import decode_image
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, load_vit, save_model
from reidssl.selection.cfs import cfs_scores, group_scores
from tests.tiny import IMAGENET, TINY_VIT


def config_of(data, source, target, output, *overrides: str) -> ScoreConfig:
    given = [f"data={data.uri}", f"source_proxy={source}", f"target_proxy={target}", f"output={output}"]
    return load_config(ScoreConfig, "score", [*given, "pool.actors=1", "pool.batch=32", *overrides])


@pytest.fixture(scope="module")
def scored(tmp_path_factory, ray_session, tiny_shards, tiny_backbone, supervised_run):
    """(folder, summary) of the scores of the tiny data set."""
    output = tmp_path_factory.mktemp("score") / "scores"
    return output, main(config_of(tiny_shards, tiny_backbone, supervised_run[0], output))


def scores_in(output, data) -> dict[str, float]:
    table = read_scores(open_storage(str(output)), read_manifest(data))
    return dict(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))


@torch.no_grad()
def by_hand(data, source, target) -> dict[str, float]:
    """Cosines of the features of the two backbones, one image at a time, each backbone with its own normalization."""
    proxies = [
        (load_vit(source / "backbone.safetensors"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (load_reid(target / "model.safetensors").backbone, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ]
    table, found = read_rows(data, ["key", "image"]), {}
    for key, image in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
        pixels = torch.from_numpy(decode_image(image, (64, 32)))[None].double() / 255
        features = []
        for model, mean, std in proxies:
            mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (mean, std))
            features.append(model.eval()(((pixels - mean) / std).float())[0].double())
        found[key] = float(features[0] @ features[1] / features[0].norm() / features[1].norm())
    return found


def test_scores_equal_a_direct_computation(scored, tiny_shards, tiny_labeled, tiny_backbone, supervised_run):
    output, summary = scored
    found, expected = scores_in(output, tiny_shards), by_hand(tiny_shards, tiny_backbone, supervised_run[0])
    assert list(found) == list(expected)  # all images, in the order of the shards
    assert found == pytest.approx(expected, abs=2e-5)
    values = np.array(list(found.values()))
    assert values.std() > 1e-4, "the proxies must differ, or the comparison shows nothing"
    assert (summary["total"], summary["mean"], summary["std"]) == (90, pytest.approx(values.mean()), pytest.approx(values.std()))
    assert summary["quantiles"] == pytest.approx(np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist())
    planted = np.array(read_rows(tiny_shards, ["planted"])["planted"].to_pylist())
    assert summary["auc_planted"] == pytest.approx(roc_auc_score(planted == 0, values))
    assert summary["data_checksum"] == read_manifest(tiny_shards).checksum
    assert summary["measure"] == "cosine" and "k" not in summary  # settings that the measure does not use are left out
    proxies = summary["proxies"]
    assert proxies["source"]["loaded"]["kind"] == "a model of ours"
    told = {name: value for name, value in proxies["source"].items() if name != "loaded"}
    assert told == {"weights": load_model(str(tiny_backbone), StorageConfig()).weights, "image_size": [64, 32]}
    assert proxies["target"]["target_manifest"] == read_manifest(tiny_labeled).checksum and summary["environment"]["code"]
    assert proxies["target"]["weights"] == supervised_run[1]["weights"] != proxies["source"]["weights"]
    assert proxies["target"]["setting"] == "supervised" and proxies["target"]["checkpoint"] == str(tiny_backbone)


@pytest.mark.slow  # one more pass; from kept features, the ordinary tests do this
def test_neighborhoods_equal_the_library(ray_session, tiny_shards, tiny_backbone, supervised_run, tmp_path):
    output = tmp_path / "scores"
    config = config_of(tiny_shards, tiny_backbone, supervised_run[0], output, "measure=neighborhood", "k=7")
    summary = main(config)
    features = [embed(tiny_shards, path) for path in (tiny_backbone, supervised_run[0])]
    expected = cfs_scores(*features, "neighborhood", 7).numpy()
    found = np.array(list(scores_in(output, tiny_shards).values()))
    assert (found == expected).mean() > 0.97 and np.abs(found - expected).max() <= 1 / 7 + 1e-6  # rounding swaps near ties
    assert 0.05 < found.mean() < 0.95
    assert {name: summary[name] for name in ("measure", "k", "search")} == {"measure": "neighborhood", "k": 7, "search": "exact"}
    assert not (output / "features").exists()


def embed(data, run) -> torch.Tensor:
    """Backbone features (N, D) of all images, as used by the score."""
    model = load_model(str(run), StorageConfig())
    images = [decode_image(image, (64, 32)) for image in read_rows(data, ["image"])["image"].to_pylist()]
    with torch.no_grad():
        return model.backbone(normalize(torch.from_numpy(np.stack(images)), model.mean, model.std))


# ---- kept features, and measures from them


@pytest.fixture(scope="module")
def kept(tmp_path_factory, ray_session, tiny_shards, tiny_backbone, supervised_run):
    """(folder, summary) of scores of the tiny data set that kept their features, computed by two actors."""
    output = tmp_path_factory.mktemp("score") / "kept"
    return output, main(config_of(tiny_shards, tiny_backbone, supervised_run[0], output, "features=true", "pool.actors=2"))


def from_kept(data, kept, output, *overrides: str):
    return main(config_of(data, "", "", output, f"features_from={kept[0]}", *overrides))


def test_kept_features_are_those_of_the_proxies(kept, scored, tiny_shards, tiny_backbone, supervised_run):
    """And keeping them, or more actors, changes no bit of the scores."""
    assert scores_in(kept[0], tiny_shards) == scores_in(scored[0], tiny_shards)
    for proxy, run in (("source", tiny_backbone), ("target", supervised_run[0])):
        tables = [pq.read_table(kept[0] / "features" / proxy / entry.name) for entry in read_manifest(tiny_shards).files]
        keys = [key for table in tables for key in table["key"].to_pylist()]
        assert keys == read_rows(tiny_shards, ["key"])["key"].to_pylist()
        features = np.concatenate([as_array(table["feature"]) for table in tables])
        np.testing.assert_allclose(features, embed(tiny_shards, run), atol=2e-5)
    assert kept[1]["features"] == str(kept[0]) and scored[1]["features"] == ""


def test_another_measure_needs_no_second_pass(kept, tiny_shards, tiny_backbone, supervised_run, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.score.stream_through_actors", None)  # a pass through the models would fail
    cosine = from_kept(tiny_shards, kept, tmp_path / "cosine")
    assert scores_in(tmp_path / "cosine", tiny_shards) == scores_in(kept[0], tiny_shards)
    assert cosine["proxies"] == kept[1]["proxies"] and cosine["source_proxy"] == str(tiny_backbone)
    near = from_kept(tiny_shards, kept, tmp_path / "near", "measure=group_neighborhood", "k=7", "group=30", "seed=2")
    assert {name: near[name] for name in ("k", "group", "seed")} == {"k": 7, "group": 30, "seed": 2} and "search" not in near
    main(config_of(tiny_shards, tiny_backbone, supervised_run[0], tmp_path / "whole", f"features_from={kept[0]}",
                   "measure=neighborhood", "k=7"))  # proxies may be named, too  # fmt: skip
    expected = cfs_scores(*(embed(tiny_shards, path) for path in (tiny_backbone, supervised_run[0])), "neighborhood", 7).numpy()
    found = np.array(list(scores_in(tmp_path / "whole", tiny_shards).values()))
    assert (found == expected).mean() > 0.97 and 0.05 < found.mean() < 0.95  # rounding swaps near ties
    assert (kept[0] / "features" / "target").exists()


def test_groups_are_scored_as_by_the_library(kept, tiny_shards, tiny_backbone, supervised_run, tmp_path):
    """Group measures from kept features, and one of them directly: equal to the library on the features of each shard."""
    for measure in ("group_neighborhood", "group_cka"):
        options = (f"measure={measure}", "k=7", "group=30", "seed=2")
        from_kept(tiny_shards, kept, tmp_path / measure, *options)
        found = scores_in(tmp_path / measure, tiny_shards)
        expected = {}
        for entry in read_manifest(tiny_shards).files:
            tables = [pq.read_table(kept[0] / "features" / proxy / entry.name) for proxy in ("source", "target")]
            keys = tables[0]["key"].to_pylist()
            scores = group_scores(keys, *(as_array(table["feature"]) for table in tables), measure, 7, 30, 2)
            expected |= dict(zip(keys, scores.tolist(), strict=True))
        assert found == expected and np.std(list(found.values())) > 0.01
    main(config_of(tiny_shards, tiny_backbone, supervised_run[0], tmp_path / "direct", *options))
    assert scores_in(tmp_path / "direct", tiny_shards) == found


def test_features_of_other_data_or_proxies_are_refused(kept, scored, tiny_shards, tiny_labeled, tiny_backbone, tmp_path):
    other = [f"features_from={kept[0]}", "measure=group_cka"]
    weights = load_model(str(tiny_backbone), StorageConfig()).weights
    with pytest.raises(UserError, match=rf"(?s)are not those asked for: weights of the target proxy \w+ there, {weights} here;.*"
                                        r"Leave features_from out"):  # fmt: skip
        main(config_of(tiny_shards, tiny_backbone, tiny_backbone, tmp_path / "a", *other))
    with pytest.raises(UserError, match=r"are not those asked for: data checksum \w+ there, \w+ here\. Leave"):
        main(config_of(tiny_labeled, "", "", tmp_path / "a", *other))
    with pytest.raises(UserError, match=r"scores keeps no features: give a folder that platform\.score wrote with features=true"):
        from_kept(tiny_shards, scored, tmp_path / "a")
    with pytest.raises(UserError, match=r"holds no finished scores: run platform\.score with features=true to its end"):
        from_kept(tiny_shards, (tmp_path / "nowhere",), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="features and features_from exclude each other"):
        config_of(tiny_shards, "", "", tmp_path / "a", "features=true", *other)
    copy = tmp_path / "torn"
    shutil.copytree(kept[0], copy)
    next((copy / "features" / "source").iterdir()).unlink()
    with pytest.raises(UserError, match=r"source/shard-.* does not exist: the features are not whole"):
        from_kept(tiny_shards, (copy,), tmp_path / "b")


def copied(scored, tmp_path):
    copy = tmp_path / "scores"
    shutil.copytree(scored[0], copy)
    (copy / "summary.json").unlink()
    return copy


def test_only_the_missing_shard_is_scored_again(scored, tiny_shards, tiny_backbone, supervised_run, tmp_path, capsys):
    copy = copied(scored, tmp_path)
    kept, lost = (copy / "parts" / entry.name for entry in read_manifest(tiny_shards).files)
    lost.unlink()
    # Artificial scores show that an existing part is not computed again.
    marked = pq.read_table(kept)
    marked = marked.set_column(1, "score", [np.full(len(marked), 0.5, np.float32)])
    pq.write_table(marked, kept)
    main(config_of(tiny_shards, tiny_backbone, supervised_run[0], copy))
    assert "90 images in 2 shards, 55 scored before" in capsys.readouterr().out
    before, after = scores_in(scored[0], tiny_shards), scores_in(copy, tiny_shards)
    assert list(before) == list(after)
    assert list(after.values())[:55] == [0.5] * 55
    assert list(after.values())[55:] == pytest.approx(list(before.values())[55:], abs=1e-6)


def test_a_run_stopped_before_its_summary_is_finished(scored, tiny_shards, tiny_backbone, supervised_run, tmp_path):
    copy = copied(scored, tmp_path)
    again = main(config_of(tiny_shards, tiny_backbone, supervised_run[0], copy))
    assert again == scored[1] and (copy / "summary.json").exists()


def test_a_complete_run_is_only_reported(scored, tiny_shards, tiny_backbone, supervised_run, capsys):
    assert main(config_of(tiny_shards, tiny_backbone, supervised_run[0], scored[0])) == scored[1]
    assert "is complete already" in capsys.readouterr().out


def test_wrong_inputs_are_said_and_bind_nothing(tmp_path, tiny_shards, tiny_backbone, supervised_run):
    output = tmp_path / "scores"
    with pytest.raises(
        UserError, match=r"target_proxy is empty: name that proxy's run folder, e\.g\. target_proxy=runs/demo/proxy/target"
    ):
        main(config_of(tiny_shards, tiny_backbone, "", output))
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of(tiny_shards, tiny_backbone, tmp_path / "nowhere", output))
    with pytest.raises(StorageError, match=r"there is no data set at .*empty"):
        main(config_of(open_storage(str(tmp_path / "empty")), tiny_backbone, supervised_run[0], output))
    assert not output.exists()  # the corrected command must not find the configuration of the wrong one
    with pytest.raises(ConfigError, match=r"measure must be one of cosine, .*, group_cka: got 'euclidean'"):
        config_of(tiny_shards, tiny_backbone, supervised_run[0], output, "measure=euclidean")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 48, "heads": 3}, r"width is 32 in source_proxy=.*backbone.* and 48 in target_proxy=.*other"),
        ({"image_size": (96, 32)}, r"image_size is \(64, 32\) in source_proxy=.* and \(96, 32\) in target_proxy="),
        ({"depth": 3}, r"depth is 2 in source_proxy=.* and 3 in target_proxy="),
    ],
)
def test_proxies_of_two_models_are_refused_before_any_work(tmp_path, tiny_shards, tiny_backbone, change, said):
    (tmp_path / "other").mkdir()
    save_model(
        build_vit(replace(TINY_VIT, **change), seed=1),
        {"kind": "backbone", **IMAGENET},
        tmp_path / "other" / "backbone.safetensors",
    )
    with pytest.raises(UserError, match=r"the proxies are not of one model: " + said):
        main(config_of(tiny_shards, tiny_backbone, tmp_path / "other", tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()


def test_scores_are_not_continued_with_another_proxy(scored, tiny_shards, tiny_backbone, supervised_run, tmp_path):
    copy = copied(scored, tmp_path)
    known = json.loads((copy / "inputs.json").read_text())
    assert known["target_weights"] == supervised_run[1]["weights"]
    (copy / "inputs.json").write_text(json.dumps(known | {"target_weights": "0123456789ab"}))
    with pytest.raises(UserError, match=r"inputs of .* changed since it began \(target_weights: '0123456789ab' -> "):
        main(config_of(tiny_shards, tiny_backbone, supervised_run[0], copy))


def test_a_pool_that_leaves_no_cpu_for_reading_is_refused(tmp_path, ray_session, tiny_shards, tiny_backbone):
    with pytest.raises(UserError, match=r"one actor of 4 CPUs leaves no CPU of 4 for reading"):
        main(config_of(tiny_shards, tiny_backbone, tiny_backbone, tmp_path / "scores", "pool.cpus_per_actor=4"))


def test_other_scores_in_the_folder_are_refused(scored, tiny_labeled, tiny_backbone, supervised_run):
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  data: "):
        main(config_of(tiny_labeled, tiny_backbone, supervised_run[0], scored[0]))
