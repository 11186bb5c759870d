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
from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.inference.models import load_model
from platform.engine.storage.location import StorageConfig, open_storage
from platform.score import ScoreConfig, main, read_scores
from reidssl.augment.reid_augment import normalize
from reidssl.data.decode import decode_image
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, load_vit, save_model
from reidssl.selection.cfs import cfs_scores
from tests.tiny import IMAGENET, TINY_VIT


def config_of(data, source, target, output, *overrides: str) -> ScoreConfig:
    return load_config(
        ScoreConfig,
        "score",
        [
            f"data={data.uri}",
            f"source_proxy={source}",
            f"target_proxy={target}",
            f"output={output}",
            "pool.actors=1",
            "pool.batch=32",
            *overrides,
        ],
    )


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


def test_scores_equal_a_direct_computation(scored, tiny_shards, tiny_backbone, supervised_run):
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
    assert proxies["target"]["weights"] == supervised_run[1]["weights"] != proxies["source"]["weights"]
    assert proxies["target"]["setting"] == "supervised" and proxies["target"]["checkpoint"] == str(tiny_backbone)


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
    with pytest.raises(ConfigError, match=r"measure must be one of cosine, neighborhood: got 'euclidean'"):
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
