"""An epoch of fine-tuning without labels: pseudo-labels, batches, memory."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from platform.engine.clustering.sharded_neighbors import NeighborActorsConfig
from platform.engine.data.image_set import ImageSet
from platform.engine.errors import UserError
from platform.engine.finetune.phase import BatchConfig, Unsupervised, UnsupervisedConfig
from reidssl.clustering.memory import ClusterMemory
from reidssl.clustering.pseudo_labels import ClusterConfig
from reidssl.models.reid import ReidOutput


@pytest.fixture(scope="module")
def images(tiny_labeled) -> ImageSet:
    """36 images of 6 people."""
    return ImageSet(tiny_labeled, ["train"], (64, 32))


def unsupervised(images, **changes) -> Unsupervised:
    config = UnsupervisedConfig(
        batch=BatchConfig(identities=4, instances=3, micro_batches=2),
        iterations=5,
        cluster=ClusterConfig(k1=6, k2=2, eps=0.6, min_samples=3),
        **changes,
    )
    return Unsupervised(config, images, seed=1)


def by_identity(images, outliers: int = 0):
    """Features that separate the people; the first `outliers` images are far from all others and from each other."""
    identities = np.unique(images.pids, return_inverse=True)[1]
    features = torch.zeros(len(images), 64)
    features[torch.arange(len(images)), torch.from_numpy(identities)] = 1.0
    features += 0.02 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    features[:outliers] = torch.eye(64)[20 : 20 + outliers]
    return F.normalize(features, dim=1)


def test_clusters_become_labels_batches_and_memory(images):
    phase, features = unsupervised(images), by_identity(images, outliers=2)
    work = phase.begin(0, lambda asked: features if asked is images else None)
    assert work.log["clusters"] == 6 and work.log["outliers"] == 2 == (work.labels < 0).sum()
    kept = work.labels >= 0
    assert len({(a, b) for a, b in zip(work.labels[kept], images.pids[kept], strict=True)}) == 6  # one to one
    assert 0.8 < work.log["adjusted_rand_index"] < 1
    assert len(work.batches) == 5  # iterations, however their batches are cut
    assert work.warnings == []
    for batch in work.batches:
        labels = work.labels[batch].reshape(4, 3)
        assert (labels >= 0).all() and (labels == labels[:, :1]).all() and len(set(labels[:, 0])) == 4
        cameras = images.camids[batch].reshape(4, 3)
        assert (cameras[:, 1:] != cameras[:, :1]).all()  # further images of an identity come from other cameras than the first
    for label in range(6):
        mean = features[torch.from_numpy(work.labels == label)].mean(0)
        assert torch.allclose(phase.memory.centroids[label], mean / mean.norm(), atol=1e-6)


def test_labels_are_compared_with_those_of_the_epoch_before_also_after_a_restart(images):
    phase, good = unsupervised(images), by_identity(images, outliers=2)
    first = phase.begin(0, lambda _: good)
    assert "label_stability" not in first.log and first.log["purity"] == 1.0
    restarted = unsupervised(images)
    restarted.load_state_tensors(phase.state_tensors())
    other = torch.roll(good, 3, 0)  # the same clusters, with other images in them
    found = [one.begin(1, lambda _: other).log for one in (phase, restarted)]
    assert found[0]["label_stability"] == found[1]["label_stability"] < 0.5 and found[0]["purity"] < 1
    assert phase.begin(2, lambda _: other).log["label_stability"] == 1.0
    assert "label_stability" not in unsupervised(images).begin(1, lambda _: good).log


@pytest.mark.parametrize("proxies", [False, True])
def test_the_memory_of_an_epoch_survives_a_restart(images, proxies):
    phase, features = unsupervised(images, camera_proxies=proxies), by_identity(images)
    work = phase.begin(0, lambda _: features)
    batch = work.batches[0]
    phase.after_step(torch.randn(len(batch), 64), torch.from_numpy(work.labels[batch]))
    again = unsupervised(images, camera_proxies=proxies)
    again.load_state_tensors({name: value.clone() for name, value in phase.state_tensors().items()})
    assert torch.equal(again.memory.centroids, phase.memory.centroids)
    given = torch.randn(len(batch), 64), torch.from_numpy(work.labels[batch])
    assert torch.equal(again.memory(*given), phase.memory(*given))


def test_images_of_one_camera_still_make_batches(images):
    """An identity's further images are preferred from other cameras, of which there are none."""
    alone = copy(images)
    alone.camids = np.zeros_like(images.camids)
    work = unsupervised(alone).begin(0, lambda _: by_identity(images))
    assert len(work.batches) == 5 and all(len(batch) == 12 for batch in work.batches)
    proxies = unsupervised(alone, camera_proxies=True)
    assert proxies.begin(0, lambda _: by_identity(images)).log["proxies"] == 6


def test_fewer_images_than_a_batch_make_smaller_batches(images):
    phase = unsupervised(images)
    phase.config = replace(phase.config, batch=BatchConfig(identities=32, instances=8))
    work = phase.begin(0, lambda _: by_identity(images))
    assert len(work.batches) == 5 and all(len(batch) == 6 * 8 for batch in work.batches)  # six clusters, images repeated


def test_camera_proxies_share_the_batches_of_their_clusters(images):
    features = by_identity(images)
    plain, phase = unsupervised(images).begin(1, lambda _: features), unsupervised(images, camera_proxies=True)
    work = phase.begin(1, lambda _: features)
    assert all((a == b).all() for a, b in zip(plain.batches, work.batches, strict=True))
    assert work.log["clusters"] == 6 and work.log["proxies"] == len(phase.memory.centroids) == 18  # three cameras each
    kept = work.labels >= 0
    assert len(set(zip(work.labels[kept], plain.labels[kept], images.camids[kept], strict=True))) == 18
    batch = work.batches[0]
    loss, _ = phase.loss(ReidOutput(torch.zeros(12, 64), features[batch], None), torch.from_numpy(work.labels[batch]))
    assert torch.isfinite(loss)


def test_the_schedule_of_eps_follows_the_epochs(images):
    phase = unsupervised(images, epochs=5)
    phase.config.cluster = ClusterConfig(k1=6, k2=2, eps=0.05, eps_end=0.6, min_samples=3)
    features = F.normalize(by_identity(images) + 0.15 * torch.randn(36, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    outliers = [phase.begin(epoch, lambda _: features).log["outliers"] for epoch in range(5)]
    assert outliers[0] > outliers[-1] and outliers == sorted(outliers, reverse=True)


def test_features_that_are_no_numbers_are_said(images):
    broken = by_identity(images)
    broken[7] = torch.nan
    with pytest.raises(UserError, match=r"labeled cannot be clustered: features must be finite: row 7 holds NaN"):
        unsupervised(images).begin(0, lambda _: broken)


def test_labels_are_judged_never_trained_on(images):
    """The batches do not depend on the true identities, as long as there are some."""
    features = by_identity(images)
    pids, first = images.pids, unsupervised(images).begin(3, lambda _: features)
    try:
        images.pids = np.arange(36)
        second = unsupervised(images).begin(3, lambda _: features)
        images.pids = np.full(36, -1)
        third = unsupervised(images).begin(3, lambda _: features)
    finally:
        images.pids = pids
    assert first.log["adjusted_rand_index"] == 1.0 and "adjusted_rand_index" not in third.log
    for other in (second, third):
        assert all((a == b).all() for a, b in zip(first.batches, other.batches, strict=True))


ARC = torch.linspace(0, 0.5, 36)


@pytest.mark.parametrize(("features", "clusters"), [(torch.stack([ARC.cos(), ARC.sin()], 1), 1), (torch.eye(36), 0)])
def test_fewer_than_two_clusters_are_nothing_to_learn_from(images, features, clusters):
    """Two cases: a chain in which all images are connected, and images without any similarity."""
    phase = unsupervised(images)
    phase.config.cluster = ClusterConfig(k1=6, k2=2, eps=0.95 if clusters else 0.3, min_samples=3)
    work = phase.begin(0, lambda _: features)
    assert work.batches == [] and work.log["clusters"] == clusters and "cluster_seconds" in work.log
    said = "all 36 clustered images are in one" if clusters else "all 36 images are outliers"
    assert len(work.warnings) == 1 and work.warnings[0].startswith(f"fewer than two clusters ({said})")


def test_the_memory_moves_once_a_step_with_all_its_features(images):
    phase = unsupervised(images, momentum=0.2, hard=True)
    phase.begin(0, lambda _: by_identity(images))
    before = phase.memory.centroids.clone()
    features = F.normalize(torch.randn(8, 64), dim=1)
    labels = torch.tensor([0, 0, 3, 3, 0, 5, 3, 5])
    loss, terms = phase.loss(ReidOutput(torch.zeros(8, 64), features, None), labels)
    expected = F.cross_entropy(features @ before.T / 0.05, labels)
    assert float(loss) == float(terms["contrast"]) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(phase.memory.centroids, before)  # the loss alone changes nothing
    phase.after_step(features, labels)
    for label in range(6):
        mine = features[labels == label]
        if len(mine):  # the least similar of the whole step, not of each micro-batch
            hardest = mine[(mine @ before[label]).argmin()]
            expected = F.normalize(0.2 * before[label] + 0.8 * hardest, dim=0)
            assert torch.allclose(phase.memory.centroids[label], expected, atol=1e-6)
        else:
            assert torch.equal(phase.memory.centroids[label], before[label])
    twice = ClusterMemory(before, 0.05, 0.2, True)
    for part in (slice(0, 4), slice(4, 8)):
        twice.update(features[part], labels[part])
    assert not torch.allclose(twice.centroids, phase.memory.centroids, atol=1e-3)  # an update per micro-batch would differ


def test_unsupervised_learning_rate_falls_in_steps(images):
    phase = unsupervised(images, learning_rate=3.5e-4, decay_epochs=20)
    assert [phase.learning_rate(epoch) for epoch in (0, 19, 20, 40)] == pytest.approx([3.5e-4, 3.5e-4, 3.5e-5, 3.5e-6])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchConfig(instances=0), "instances must be at least 1: got 0"),
        (lambda: BatchConfig(micro_batches=65), r"micro_batches must be between 0 .* and the 64 images of a batch: got 65"),
        (lambda: BatchConfig(micro_batches=-1), r"micro_batches must be between 0 .*: got -1"),
        (lambda: UnsupervisedConfig(neck="both"), "neck must be one of before, after: got 'both'"),
        (lambda: UnsupervisedConfig(learning_rate=0.0), "learning_rate must be positive: got 0.0"),
        (
            lambda: UnsupervisedConfig(
                cluster=ClusterConfig(algorithm="kmeans", num_clusters=3), neighbors=NeighborActorsConfig(actors=2)
            ),
            "neighbors.actors must be 0 with cluster",
        ),
        (lambda: UnsupervisedConfig(iterations=0), "iterations must be at least 1: got 0"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_actors_may_share_the_clustering(ray_session, images):
    features = by_identity(images, outliers=2)
    alone, phase = unsupervised(images), unsupervised(images)
    phase.config.neighbors = NeighborActorsConfig(actors=2, cpus_per_actor=0.5)
    np.testing.assert_array_equal(phase.begin(0, lambda _: features).labels, alone.begin(0, lambda _: features).labels)
