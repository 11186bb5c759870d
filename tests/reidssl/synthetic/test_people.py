"""Synthetic people: pure functions of their specification, in disjoint parts, neither trivial nor impossible to match."""

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from reidssl.data import luperson, market1501
from reidssl.synthetic.people import PLANTED_KINDS, SyntheticConfig, render, specifications

SMALL = SyntheticConfig(num_pretrain=60, pretrain_identities=20, pretrain_scenes=8, source_identities=10, target_identities=12)
PARTS = ("pretrain", "source", "target")


def digest(config: SyntheticConfig) -> str:
    hashes = hashlib.sha256()
    for part in PARTS:
        for spec in specifications(config, part)[::9]:
            hashes.update(spec.key.encode() + render(spec, config).tobytes())
    return hashes.hexdigest()


@pytest.mark.parametrize("part", PARTS)
def test_images_are_pure_functions_of_their_specification(part):
    specs = specifications(SMALL, part)
    assert specs == specifications(SMALL, part)
    forward = [render(spec, SMALL) for spec in specs[:12]]
    backward = [render(pickle.loads(pickle.dumps(spec)), SMALL) for spec in reversed(specs[:12])]
    for first, second in zip(forward, reversed(backward), strict=True):
        assert first.dtype == np.uint8 and first.shape == (128, 64, 3)
        np.testing.assert_array_equal(first, second)
    assert len({image.tobytes() for image in forward}) == 12


def test_another_process_draws_the_same_images():
    code = "from reidssl.synthetic.people import SyntheticConfig\nfrom test_people import SMALL, digest\nprint(digest(SMALL))"
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == digest(SMALL), done.stderr


def test_the_seed_changes_everything():
    other = SyntheticConfig(**{**SMALL.__dict__, "seed": 1})
    for part in PARTS:
        first, second = specifications(SMALL, part), specifications(other, part)
        assert not {spec.image_seed for spec in first} & {spec.image_seed for spec in second}
        assert not {spec.identity_seed for spec in first} & {spec.identity_seed for spec in second}


def test_parts_share_no_identity_and_no_camera():
    identities = [{spec.identity_seed for spec in specifications(SMALL, part)} for part in PARTS]
    scenes = [{spec.scene_seed for spec in specifications(SMALL, part)} for part in PARTS]
    for i in range(3):
        for j in range(i):
            assert not identities[i] & identities[j]
            assert not scenes[i] & scenes[j]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
def test_planted_images_are_exactly_the_wanted_share(fraction):
    config = SyntheticConfig(num_pretrain=200, planted_fraction=fraction)
    specs = specifications(config, "pretrain")
    assert len(specs) == 200 and sum(spec.planted for spec in specs) == round(200 * fraction)
    assert all((spec.pid, spec.camid, spec.split) == (-1, -1, "train") for spec in specs)


def test_pretraining_keys_read_as_luperson():
    keys = [spec.key for spec in specifications(SMALL, "pretrain")]
    records = luperson.index(keys, expect_published=False)
    assert [record.key for record in records] == keys  # sorted already


@pytest.mark.parametrize("part", ["source", "target"])
def test_labeled_keys_read_as_market1501(part):
    specs = specifications(SMALL, part)
    records = market1501.index([spec.key for spec in specs], expect_published=False)
    assert [tuple(record) for record in records] == [(s.key, s.pid, s.camid, s.split) for s in specs]


def test_train_and_test_people_differ_and_every_query_has_a_match_in_another_camera():
    specs = specifications(SMALL, "target")
    train = {spec.pid for spec in specs if spec.split == "train"}
    queries = [spec for spec in specs if spec.split == "query"]
    gallery = [spec for spec in specs if spec.split == "gallery"]
    assert len(train) == 6 and not train & {spec.pid for spec in queries + gallery}
    assert len({(spec.pid, spec.camid) for spec in queries}) == len(queries) == 6 * SMALL.cameras_per_identity
    assert len(gallery) == len(queries) * (SMALL.images_per_camera - 1)
    for query in queries:
        assert any(other.pid == query.pid and other.camid != query.camid for other in gallery)


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (256, 128), (40, 24)])
def test_image_sizes(size):
    config = SyntheticConfig(image_size=size, num_pretrain=20)
    assert all(render(spec, config).shape == (*size, 3) for spec in specifications(config, "pretrain"))


def test_all_kinds_of_planted_images_can_be_drawn_at_an_extreme_share():
    config = SyntheticConfig(num_pretrain=30 * len(PLANTED_KINDS), planted_fraction=0.99, image_size=(32, 16))
    images = np.stack([render(spec, config) for spec in specifications(config, "pretrain")])
    assert images.std(axis=(1, 2, 3)).min() > 0.5  # no image is empty


def test_backgrounds_vary_within_a_camera():
    """The border of the crop must not reveal the camera (see the module's docstring)."""
    config = SyntheticConfig(image_size=(64, 32))
    specs = [spec for spec in specifications(config, "target") if spec.camid == 1][:60]
    borders = np.stack([render(spec, config)[:, [0, 1, -2, -1]].astype(np.float64) for spec in specs])
    within = borders.std(axis=0).mean()
    assert within > 20  # levels of 0..255; sensor noise alone is about 7


def mean_average_precision(features: np.ndarray, specs: list, num_queries: int) -> float:
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    pids, camids = np.array([s.pid for s in specs]), np.array([s.camid for s in specs])
    scores = []
    for row in range(num_queries):
        keep = np.arange(num_queries, len(specs))
        keep = keep[(pids[keep] != pids[row]) | (camids[keep] != camids[row])]
        order = keep[np.argsort(-features[keep] @ features[row], kind="stable")]
        hits = np.flatnonzero(pids[order] == pids[row])
        scores.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(scores))


def test_pixels_and_colors_alone_do_not_solve_the_target_set():
    """Pixels are better than chance, and neither pixels nor colors solve the task, so that there is something to learn."""
    config = SyntheticConfig(image_size=(32, 16), target_identities=80)
    specs = [spec for spec in specifications(config, "target") if spec.split != "train"]
    specs.sort(key=lambda spec: (spec.split != "query", spec.key))
    num_queries = sum(spec.split == "query" for spec in specs)
    images = np.stack([render(spec, config) for spec in specs])
    bins = (images // 32).astype(np.int64) @ [64, 8, 1]
    histograms = np.stack([np.bincount(image.ravel(), minlength=512) for image in bins]) ** 0.5
    chance = mean_average_precision(np.random.default_rng(0).normal(size=(len(specs), 64)), specs, num_queries)
    pixels = mean_average_precision(images.reshape(len(specs), -1) / 255, specs, num_queries)
    assert chance + 0.05 < pixels < 0.4
    assert mean_average_precision(histograms, specs, num_queries) < 0.3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", (8, 8)),
        ("num_pretrain", 0),
        ("planted_fraction", 1.0),
        ("planted_fraction", -0.1),
        ("source_identities", 1),
        ("target_identities", 10_000),
        ("images_per_camera", 1),
        ("cameras_per_identity", 1),
        ("target_cameras", 1),
        ("train_fraction", 1.0),
    ],
)
def test_bad_settings_name_their_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be .*got"):
        SyntheticConfig(**{field: value})


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part must be one of pretrain, source, target: got 'test'"):
        specifications(SMALL, "test")
