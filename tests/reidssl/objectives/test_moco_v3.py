"""MoCo v3 against a plain loop over pairs and images, and the common interface."""

import math

import pytest
import torch
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Progress
from reidssl.objectives.dino import Dino
from reidssl.objectives.moco_v3 import MocoV3, MocoV3Config

VIT = VitConfig(width=16, depth=1, heads=2, patch_size=16, image_size=(32, 32), stem="patch")
CONFIG = MocoV3Config(out_dim=8, hidden=12, projector_layers=2)
PROGRESS = Progress(0, 10, 100)


def crops(count: int, images: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, 32, 32, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("num_crops", [2, 4])
@pytest.mark.parametrize("layers", [0, 2])
def test_loss_equals_a_loop_over_pairs(num_crops, layers):
    """ctr(q1, k2) + ctr(q2, k1) for two crops, each 2 t times a mean over images; twice the mean ctr for more crops."""
    config = MocoV3Config(out_dim=8, hidden=12, projector_layers=layers, temperature=0.3)
    objective = MocoV3(VIT, config, seed=3)
    views = crops(num_crops)
    output = objective(objective.student, views, PROGRESS)
    queries = F.normalize(objective.student(views).logits, dim=1).chunk(num_crops)
    keys = F.normalize(objective.teacher(views[:2]).logits, dim=1).chunk(2)
    losses = []
    for view, query in enumerate(queries):
        for other, key in enumerate(keys):
            if view == other:
                continue
            for image in range(len(query)):
                scores = [math.exp(float(query[image] @ key[n]) / 0.3) for n in range(len(key))]
                losses.append(-math.log(scores[image] / sum(scores)))
    contrast = 2 * 0.3 * sum(losses) / len(losses)
    assert float(output.loss.detach()) == pytest.approx(2 * contrast, rel=1e-4)


def test_gradient_equals_that_of_the_published_sum():
    """ctr of each direction separately.

    The networks compute in double precision, because the batch norms over few images make single precision depend on the number
    of threads.
    """
    objective = MocoV3(VIT, MocoV3Config(out_dim=8, hidden=12, projector_layers=2, temperature=0.3), seed=3).double()
    views = [view.double() for view in crops(2)]
    objective(objective.student, views, PROGRESS).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in objective.student.named_parameters()}
    objective.student.zero_grad()
    q1, q2 = F.normalize(objective.student(views).logits, dim=1).chunk(2)
    k1, k2 = F.normalize(objective.teacher(views).logits, dim=1).chunk(2)

    def ctr(q, k):
        return 2 * 0.3 * torch.stack([F.cross_entropy(k @ q[i] / 0.3, torch.tensor(i)) for i in range(5)]).mean()

    (ctr(q1, k2) + ctr(q2, k1)).backward()
    for name, parameter in objective.student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_autocast_leaves_the_scores_in_single_precision():
    """With networks in bf16 the loss of their outputs stays exact. At a low temperature bf16 scores would be visible."""
    objective, views = MocoV3(VIT, MocoV3Config(out_dim=8, hidden=12, projector_layers=2, temperature=0.02), seed=3), crops(2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        loss = objective(objective.student, views, PROGRESS).loss
        student, teacher = objective.student(views).logits, objective.teacher(views).logits
    q1, q2 = F.normalize(student.double(), dim=1).chunk(2)
    k1, k2 = F.normalize(teacher.double(), dim=1).chunk(2)
    expected = sum(2 * 0.02 * F.cross_entropy(q @ k.T / 0.02, torch.arange(5)) for q, k in ((q1, k2), (q2, k1)))
    assert student.dtype == torch.bfloat16 and loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_student_parameter_gets_a_gradient_and_the_teacher_none():
    objective = MocoV3(VIT, CONFIG)
    objective(objective.student, crops(2), PROGRESS).loss.backward()
    assert all(p.grad is not None for p in objective.student.parameters())
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_the_teacher_follows_the_student_without_its_predictor():
    objective = MocoV3(VIT, CONFIG)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    objective.update_teacher(objective.student.named_parameters(), 0.9)
    for name, value in objective.teacher.named_parameters():
        assert torch.allclose(value, before[name] + 0.1, atol=1e-5), name
    assert not any(name.startswith("head.predictor") for name in before)


def test_state_goes_round_and_the_export_is_the_teacher():
    objective, other = MocoV3(VIT, CONFIG, seed=1), MocoV3(VIT, CONFIG, seed=2)
    other.load_state_tensors(objective.state_tensors())
    image = crops(1)[0]
    assert torch.equal(other.export_backbone()(image), objective.export_backbone()(image))


def test_training_learns_to_tell_the_images_of_a_batch_apart():
    objective = MocoV3(VIT, MocoV3Config(out_dim=8, hidden=12, projector_layers=0, teacher_momentum=0.9))
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=1e-2)
    views = crops(1, images=8) * 2
    losses = []
    for _ in range(30):
        output = objective(objective.student, views, PROGRESS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update_teacher(objective.student.named_parameters(), 0.9)
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert float(output.terms["accuracy"]) == 1.0


def test_refuses_what_cannot_be_contrasted():
    objective = MocoV3(VIT, CONFIG)
    with pytest.raises(ValueError, match="2 global crops"):
        objective(objective.student, crops(1), PROGRESS)
    with pytest.raises(ValueError, match="at least 2 images"):
        objective(objective.student, crops(2, images=1), PROGRESS)
    with pytest.raises(ValueError, match="temperature"):
        MocoV3Config(temperature=0.0)


def test_the_config_chooses_the_objective():
    assert isinstance(build_objective(VIT, ObjectiveConfig(name="moco_v3", moco_v3=CONFIG)), MocoV3)
    tiny = ObjectiveConfig()
    tiny.dino.out_dim, tiny.dino.hidden, tiny.dino.bottleneck = 16, 8, 4
    assert isinstance(build_objective(VIT, tiny), Dino)
    with pytest.raises(ValueError, match="dino, dino_mim, moco_v3, moby"):
        ObjectiveConfig(name="byol")


def test_a_frozen_patch_embedding_is_not_trained():
    objective = MocoV3(VIT, MocoV3Config(out_dim=8, hidden=12, freeze_patch_embed=True))
    objective(objective.student, crops(2), PROGRESS).loss.backward()
    still = {name for name, value in objective.student.named_parameters() if value.grad is None}
    assert still == {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
