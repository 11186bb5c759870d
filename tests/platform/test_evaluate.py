"""Evaluation through its `main`: the table equals metrics computed in this process; bad paths are reported."""

import json

import numpy as np
import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.data.image_set import ImageSet
from platform.engine.data.shards import Manifest, read_manifest
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.inference.models import load_model
from platform.engine.runs.run_folder import environment
from platform.engine.storage.location import StorageConfig
from platform.evaluate import EvaluateProgramConfig, data_set, main, matrix
from reidssl.metrics.ranking import rank
from reidssl.metrics.reranking import rank_reranked
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model
from tests.fixtures_runs import embed_all
from tests.platform.report_runs import write_data

NAMES = ("mAP", "rank1", "rank5", "rank10", "mINP")


def config_of(models, sets, *overrides: str) -> EvaluateProgramConfig:
    return load_config(
        EvaluateProgramConfig,
        "evaluate",
        [
            f"checkpoints=[{','.join(map(str, models))}]",
            f"test_sets=[{','.join(str(each) for each in sets)}]",
            "pool.actors=1",
            "pool.batch=16",
            *overrides,
        ],
    )


def in_process(model, data, size=(64, 32), resize="bicubic") -> tuple:
    """Arguments of the metrics, with features computed in this process without Ray."""
    loaded = load_model(str(model), StorageConfig(), image_size=size)
    query, gallery = (ImageSet(data, [split], size, resize=resize) for split in ("query", "gallery"))
    return (embed_all(loaded, query), query.pids, query.camids, embed_all(loaded, gallery), gallery.pids, gallery.camids)


def test_a_table_of_two_models(tmp_path, ray_session, tiny_backbone, supervised_run, tiny_labeled, capsys):
    models = [supervised_run[0], tiny_backbone]
    rows = main(config_of(models, [tiny_labeled.uri], f"output={tmp_path}", "evaluate.reranking=true", "evaluate.tasks=2"))
    assert [(row["model"], row["data"]) for row in rows] == [(str(model), tiny_labeled.uri) for model in models]
    for model, row in zip(models, rows, strict=True):
        arguments = in_process(model, tiny_labeled)
        expected, reranked = rank(*arguments), rank_reranked(*arguments)
        assert [row[name] for name in NAMES] == pytest.approx([getattr(expected, name) for name in NAMES], abs=1e-6)
        assert row["reranked"] == pytest.approx({"mAP": reranked.mAP, "rank1": reranked.rank1}, abs=1e-6)
        about = {
            "data_set": "synthetic",
            "data_checksum": read_manifest(tiny_labeled).checksum,
            "splits": ["query", "gallery"],
            "reranking": True,
            "image_size": [64, 32],
        }
        assert {name: row[name] for name in about} == about
        assert row["queries"] == row["gallery"] == 18 and row["image_size"] == [64, 32]
    # The value that fine-tuning reported, from features that its workers computed.
    summary = supervised_run[1]
    assert [rows[0][name] for name in NAMES] == pytest.approx([summary[name] for name in NAMES], abs=1e-6)
    assert rows[0]["weights"] == summary["weights"] != rows[1]["weights"]
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert all(row["query_expansion"] == 0 and row["environment"] == environment() for row in stored)
    assert [{name: row[name] for name in NAMES} for row in stored] == [{name: row[name] for name in NAMES} for row in rows]
    assert stored[0]["rankings"] == json.loads((supervised_run[0] / "rankings.json").read_text())
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{100 * row['mAP']:7.1f}  {100 * row['rank1']:7.1f}" in printed
    assert printed.count("re-ranked") == 2
    checksum = read_manifest(tiny_labeled).checksum[:12]
    assert (
        printed.count(
            f"  synthetic (checksum {checksum}), query and gallery, images 64x32, no query expansion, also re-ranking, weights "
        )
        == 2
    )
    assert printed.splitlines()[-4] == "mAP / Rank-1, no query expansion"  # two models on one set also give a matrix
    assert printed.splitlines()[-2].split()[0] == str(models[0])


@pytest.mark.slow  # two passes more
def test_models_of_two_sizes_on_two_sets(tmp_path, ray_session, tiny_backbone, supervised_run, tiny_labeled):
    """The models of one size share a pass over both sets; each result is that of the model and the set alone."""
    other = write_data(tmp_path / "other", "target")
    small = tmp_path / "small.safetensors"
    vit = VitConfig(width=32, depth=1, heads=2, patch_size=8, stem="patch", image_size=(48, 24))
    save_model(build_vit(vit, seed=3), {"kind": "backbone"}, small)
    models, sets = [supervised_run[0], small, tiny_backbone], [other, tiny_labeled]
    rows = main(config_of(models, [each.uri for each in sets]))
    assert [(row["model"], row["data"]) for row in rows] == [(str(model), each.uri) for model in models for each in sets]
    for row, (model, each) in zip(rows, [(model, each) for model in models for each in sets], strict=True):
        size = (48, 24) if model == small else (64, 32)
        expected = rank(*in_process(model, each, size))
        assert [row[name] for name in NAMES] == pytest.approx([getattr(expected, name) for name in NAMES], abs=1e-6)
        assert row["image_size"] == list(size) and row["data_checksum"] == read_manifest(each).checksum


def test_test_images_are_scaled_as_asked(ray_session, tiny_backbone, tiny_labeled, capsys):
    (row,) = main(config_of([tiny_backbone], [tiny_labeled.uri], "image_size=[48,32]", "evaluate.resize=bilinear"))
    expected, other = (rank(*in_process(tiny_backbone, tiny_labeled, (48, 32), how)) for how in ("bilinear", "bicubic"))
    assert [row[name] for name in NAMES] == pytest.approx([getattr(expected, name) for name in NAMES], abs=1e-6)
    assert abs(expected.mAP - other.mAP) > 1e-5 and "images 48x32 (bilinear), no query expansion" in capsys.readouterr().out


def test_verification_and_cameras_on_the_terminal(ray_session, tiny_backbone, tiny_labeled, capsys):
    (row,) = main(
        config_of(
            [tiny_backbone],
            [tiny_labeled.uri],
            "evaluate.roc=true",
            "evaluate.cameras=true",
            "image_size=[96,48]",
            "evaluate.expansion=3",
        )
    )
    assert row["image_size"] == [96, 48] and row["query_expansion"] == 3
    printed = capsys.readouterr().out
    assert "images 96x48, query expansion with 3 images, no re-ranking" in printed
    assert f"{100 * row['roc']['1e-02']:.1f} at FPR 1e-02" in printed
    lines = printed[printed.index("mAP from camera to camera") :].splitlines()
    assert lines[1].split() == [str(camera) for camera in row["camera_pairs"]["gallery_cameras"]]
    assert [line.split()[0] for line in lines[2:5]] == [str(camera) for camera in row["camera_pairs"]["query_cameras"]]
    assert all(line.split().count("-") == 1 for line in lines[2:5])  # a camera against itself has no value


def test_cross_domain_matrix():
    rows = [
        {"model": model, "data": data, "mAP": m_ap, "rank1": 0.5, "query_expansion": 0}
        for model, data, m_ap in (
            ("runs/a", "market", 0.912),
            ("runs/a", "msmt17", 0.2),
            ("runs/long-name", "market", 0.3),
            ("runs/long-name", "msmt17", 0.66),
        )
    ]
    assert matrix(rows).splitlines() == [
        "mAP / Rank-1, no query expansion",
        "                       market         msmt17",
        "runs/a            91.2 / 50.0    20.0 / 50.0",
        "runs/long-name    30.0 / 50.0    66.0 / 50.0",
    ]


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [
        ("market1501", "query/0001_c1s1_000151_01.jpg", "market1501"),
        ("msmt17", "test/0001/0001_000_01.jpg", "msmt17 V1"),
        ("msmt17", "MSMT17_V2/mask_test_v2/0001/0001_000_01.jpg", "msmt17 V2"),
        ("msmt17", "test/mask_test_v2/0001/0001_000_01.jpg", "msmt17 V2"),
        ("folder", "mask_test_v2/a.jpg", "folder"),
    ],
)
def test_the_version_of_the_data_is_named(kind, key, name):
    assert data_set(Manifest([], source={"kind": kind}), key) == name


def test_metrics_of_the_protocol_by_hand(tiny_labeled, supervised_run):
    """The mAP of the table equals its definition, query by query."""
    query, qp, qc, gallery, gp, gc = in_process(supervised_run[0], tiny_labeled)
    precisions = []
    for row in range(len(query)):
        kept = ~((gp == qp[row]) & (gc == qc[row]))  # same identity and camera: junk
        order = np.argsort(-(query[row] @ gallery[torch.from_numpy(kept)].T).numpy(), kind="stable")
        hits = (gp[kept] == qp[row])[order]
        places = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    assert supervised_run[1]["mAP"] == pytest.approx(np.mean(precisions), abs=1e-6)


def test_bad_paths(tmp_path, tiny_backbone, tiny_labeled):
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of([tmp_path / "nowhere"], [tiny_labeled.uri]))
    with pytest.raises(StorageError, match=r"there is no data set at .*empty"):
        main(config_of([tiny_backbone], [tmp_path / "empty"]))
    with pytest.raises(UserError, match=r"nothing to evaluate: give checkpoints=.* and test_sets="):
        main(config_of([], [tiny_labeled.uri]))
    with pytest.raises(UserError, match=r"checkpoints has .*backbone.* more than once: name each once"):
        main(config_of([tiny_backbone, f"{tiny_backbone}/"], [tiny_labeled.uri]))
    with pytest.raises(UserError, match=r"test_sets has .*labeled more than once"):
        main(config_of([tiny_backbone], [tiny_labeled.uri, tiny_labeled.uri]))
    with pytest.raises(UserError, match=r"only evaluation.json holds: give output=<folder>"):
        main(config_of([tiny_backbone], [tiny_labeled.uri], "evaluate.per_query=true"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=rf"cannot write to {tmp_path}/file/below: {tmp_path}/file is a file"):
        main(config_of([tiny_backbone], [tiny_labeled.uri], f"output={tmp_path}/file/below"))
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):  # before the output is touched
        main(config_of([tmp_path / "nowhere"], [tiny_labeled.uri], f"output={tmp_path}/new"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"image_size must be \[height, width\] or \[\]: got \[64\]"):
        config_of([tiny_backbone], [tiny_labeled.uri], "image_size=[64]")


def test_a_set_without_query_and_gallery(ray_session, tiny_backbone, tiny_shards):
    with pytest.raises(UserError, match=r"tiny has no images of split query, gallery; its splits are train"):
        main(config_of([tiny_backbone], [tiny_shards.uri]))
