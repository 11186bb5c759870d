"""An epoch of fine-tuning with identity labels: batches, losses, centers."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from platform.engine.data.image_set import ImageSet
from platform.engine.errors import UserError
from platform.engine.finetune.phase import BatchConfig
from platform.engine.finetune.supervised import Supervised, SupervisedConfig
from reidssl.models.model_config import JigsawConfig
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.models.vit import build_vit
from tests.tiny import TINY_VIT


@pytest.fixture(scope="module")
def images(tiny_labeled) -> ImageSet:
    """36 images of 6 people."""
    return ImageSet(tiny_labeled, ["train"], (64, 32))


def supervised(images, **changes) -> Supervised:
    return Supervised(SupervisedConfig(batch=BatchConfig(identities=3, instances=2), **changes), images, seed=1)


def test_supervised_batches_hold_whole_identities(images):
    work = supervised(images).begin(0, features=None)
    assert sorted(set(work.labels.tolist())) == list(range(6)) and len(work.labels) == 36
    assert all((images.pids[work.labels == label] == images.pids[work.labels == label][0]).all() for label in range(6))
    for batch in work.batches:
        pids = images.pids[batch].reshape(3, 2)
        assert (pids[:, 0] == pids[:, 1]).all() and len(set(pids[:, 0])) == 3
    used = np.concatenate(work.batches)
    assert len(set(used.tolist())) == len(used) > 24  # no image twice; an incomplete last batch is left out
    again, other = supervised(images).begin(0, features=None), supervised(images).begin(1, features=None)
    assert all((a == b).all() for a, b in zip(work.batches, again.batches, strict=True))
    assert not all((a == b).all() for a, b in zip(work.batches, other.batches, strict=False))


def test_supervised_loss_is_identity_plus_triplet(images):
    phase = supervised(images)
    model = ReidModel(build_vit(TINY_VIT, 0))
    phase.prepare(model)
    assert model.num_classes == 6
    before, after = torch.randn(6, 8), torch.randn(6, 8)
    logits, labels = torch.randn(6, 6), torch.tensor([0, 0, 4, 4, 2, 2])
    loss, terms = phase.loss(ReidOutput(before, after, logits), labels)
    distances = torch.cdist(before.double(), before.double())
    same = labels[:, None] == labels
    triplet = F.softplus(distances.masked_fill(~same, -1).amax(1) - distances.masked_fill(same, 1e9).amin(1)).mean()
    assert float(terms["identity"]) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert float(terms["triplet"]) == pytest.approx(float(triplet), rel=1e-4)
    assert float(loss) == pytest.approx(float(terms["identity"] + terms["triplet"]))
    assert float(terms["accuracy"]) == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_supervised_learning_rate_of_the_released_recipe(images):
    phase = supervised(images, epochs=120, warmup_epochs=20, learning_rate=4e-4)
    rates = [phase.learning_rate(epoch) for epoch in range(120)]
    assert rates[0] == pytest.approx(4e-6) and rates[19] == pytest.approx(4e-6 + 19 * 0.99 * 4e-4 / 20)
    assert rates[60] == pytest.approx(0.002 * 4e-4 + 0.5 * (4e-4 - 0.002 * 4e-4) * (1 + np.cos(np.pi * 60 / 120)))
    assert max(rates) < 4e-4 and all(a > b for a, b in itertools.pairwise(rates[20:]))


def test_unlabeled_images_are_refused(images):
    pids = images.pids
    try:
        images.pids = np.where(np.arange(36) == 3, -1, pids)
        with pytest.raises(UserError, match=r"has unlabeled images in split train: .*use setting=usl"):
            supervised(images)
    finally:
        images.pids = pids


def test_fewer_people_than_a_batch_needs_are_refused(images):
    with pytest.raises(UserError, match=r"has 6 people in split train, a batch needs 7: lower supervised.batch.identities"):
        Supervised(SupervisedConfig(batch=BatchConfig(identities=7)), images, seed=1)


LABELS = torch.tensor([0, 0, 4, 4, 2, 2])


def output_of(model: ReidModel, seed: int = 0) -> ReidOutput:
    """Output for 6 random features, through the model's neck and classifier."""
    before = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    after = model.bottleneck(before)
    return ReidOutput(before, after, model.classifier(after))


@pytest.mark.parametrize("identity", ["arcface", "cosface", "circle"])
def test_margin_losses_get_cosines_and_their_settings(images, identity):
    phase = supervised(images, identity=identity, identity_scale=20.0, identity_margin=0.25, triplet_weight=0.0)
    model = ReidModel(build_vit(TINY_VIT, 0))
    phase.prepare(model)
    output = output_of(model)
    cosines = F.cosine_similarity(output.after[:, None], model.classifier.weight[None], dim=2)
    torch.testing.assert_close(output.logits, cosines, atol=1e-5, rtol=0)
    own = F.one_hot(LABELS, 6).bool()
    harder = {
        "arcface": (cosines.clamp(-1, 1).acos() + 0.25 * own).cos(),
        "cosface": cosines - 0.25 * own,
        "circle": torch.where(own, (1.25 - cosines) * (cosines - 0.75), (cosines + 0.25).relu() * (cosines - 0.25)),
    }
    loss, terms = phase.loss(output, LABELS)
    assert float(loss) == pytest.approx(float(F.cross_entropy(20 * harder[identity], LABELS)), rel=1e-4)
    assert terms.keys() == {"identity", "accuracy"}
    loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_triplet_with_a_margin_and_without(images):
    model = ReidModel(build_vit(TINY_VIT, 0))
    terms = []
    for margin in (0.0, 2.0):
        phase = supervised(images, triplet_margin=margin)
        phase.prepare(model)
        terms.append(phase.loss(output_of(model), LABELS)[1]["triplet"])
    before = output_of(model).before
    same, distances = LABELS[:, None] == LABELS, torch.cdist(before.double(), before.double())
    gap = distances.masked_fill(~same, -1).amax(1) - distances.masked_fill(same, 1e9).amin(1)
    assert [float(term) for term in terms] == pytest.approx(
        [float(F.softplus(gap).mean()), float((gap + 2).relu().mean())], rel=1e-4
    )


def test_no_triplet_loss_without_a_weight(images):
    """The batch has one identity, for which the triplet loss would raise an error."""
    phase = supervised(images, triplet_weight=0.0)
    logits = torch.randn(4, 6)
    loss, terms = phase.loss(ReidOutput(torch.randn(4, 8), torch.randn(4, 8), logits), torch.zeros(4, dtype=torch.int64))
    assert "triplet" not in terms and float(loss) == pytest.approx(float(F.cross_entropy(logits, torch.zeros(4).long())))


def test_centers_follow_the_features_and_go_into_the_checkpoint(images):
    phase, model = supervised(images, center_weight=0.01), ReidModel(build_vit(TINY_VIT, 0))
    phase.prepare(model)
    output = output_of(model)
    first, terms = phase.loss(output, LABELS)
    assert float(terms["center"]) == pytest.approx(float(output.before.square().sum(1).mean()) / 2)
    assert float(first) == pytest.approx(float(terms["identity"] + terms["triplet"] + 0.01 * terms["center"]))
    remembered = phase.remembered(output)
    phase.after_step(remembered.detach(), LABELS)
    assert float(phase.loss(output, LABELS)[1]["center"]) < float(terms["center"])
    again = supervised(images, center_weight=0.01)
    again.prepare(model)
    again.load_state_tensors(phase.state_tensors())
    assert float(again.loss(output, LABELS)[0]) == float(phase.loss(output, LABELS)[0])
    without = supervised(images)
    without.prepare(model)
    assert without.remembered(output) is None and without.state_tensors() == {}


def test_whole_and_local_features_share_the_losses_by_halves(images):
    """As in TransReID's released code; accuracy and center loss are those of the whole image."""
    model = ReidModel(build_vit(TINY_VIT, 0))
    phase = supervised(images, jigsaw=JigsawConfig(parts=4), center_weight=0.01, triplet_weight=0.7)
    phase.prepare(model)
    assert [layer.out_features for layer in model.jigsaw.classifiers] == [6] * 4
    output = model(torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(0)))
    loss, terms = phase.loss(output, LABELS)
    alone = supervised(images, triplet_weight=0.7)
    alone.prepare(ReidModel(build_vit(TINY_VIT, 0)))
    each = [alone.loss(one._replace(parts=()), LABELS)[1] for one in (output, *output.parts)]
    for name in ("identity", "triplet"):
        values = [float(one[name]) for one in each]
        assert len(set(values)) == 5 and float(terms[name]) == pytest.approx(0.5 * values[0] + 0.5 * sum(values[1:]) / 4)
    assert float(terms["accuracy"]) == float(each[0]["accuracy"])
    assert float(terms["center"]) == pytest.approx(float(output.before.square().sum(1).mean()) / 2)
    assert float(loss) == pytest.approx(float(terms["identity"] + 0.7 * terms["triplet"] + 0.01 * terms["center"]))
    loss.backward()
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0
        for name, value in model.named_parameters()
        if name.startswith("jigsaw.") and value.requires_grad and name.endswith("weight")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs must be 0 or more: got -1"),
        ({"optimizer": "adam"}, "optimizer must be "),
        ({"identity": "softmax"}, "identity must be one of cross_entropy, arcface, cosface, circle: got 'softmax'"),
        ({"identity": "arcface", "identity_margin": 3.2}, r"identity_margin must be in \[0, 3.142\) for arcface: got 3.2"),
        ({"identity_scale": 0.0}, "identity_scale must be positive: got 0.0"),
        ({"center_weight": -1.0}, "center_weight must be 0 or more: got -1.0"),
        ({"center_rate": 1.5}, r"center_rate must be in \[0, 1\]: got 1.5"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SupervisedConfig(**changes)
