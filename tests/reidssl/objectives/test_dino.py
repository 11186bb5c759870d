"""DINO against the released code and a plain reference, and the properties that distributed training needs."""

import dataclasses
import math

import pytest
import torch
from omegaconf import OmegaConf

from reidssl.models.model_config import VitConfig
from reidssl.objectives.base import MultiCropModel, Progress
from reidssl.objectives.dino import Dino, DinoConfig, dino_loss
from tests.reference.fill_weights import arrays

BACKBONE = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8, drop_path=0.1)
DINO = DinoConfig(out_dim=20, hidden=12, bottleneck=6)
FIRST_EPOCH, LATER = Progress(0, 100, 1000), Progress(100, 100, 1000)


def crops(num_local: int = 2, images: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(32, 16)] * 2 + [(16, 8)] * num_local
    return [torch.randn(images, 3, *size, generator=generator) for size in sizes]


def plain_loss(student: torch.Tensor, teacher: torch.Tensor, num_crops: int, temperature: float) -> torch.Tensor:
    """The definition, one pair at a time."""
    pairs = [
        -(target * (view / temperature).log_softmax(-1)).sum(-1).mean()
        for t, target in enumerate(teacher.chunk(2))
        for v, view in enumerate(student.chunk(num_crops))
        if t != v
    ]
    return sum(pairs) / len(pairs)


def test_two_steps_equal_released():
    """Loss, gradient and center are equal. The reference's logits are a tenth of the stored arrays."""
    reference = arrays("dino.npz")
    objective = Dino(BACKBONE, DinoConfig(out_dim=1024, hidden=12, bottleneck=6))
    teacher = 0.1 * reference["teacher_output"]
    for loss_name, gradient_name, center_name in (
        ("loss_unit_epoch0", "loss_unit_grad0", "center_unit_1"),
        ("loss_unit_second", "loss_unit_grad_second", "center_unit_2"),
    ):
        student = (0.1 * reference["student_output"]).requires_grad_()
        targets = ((teacher - objective.center) / 0.04).softmax(dim=-1)
        loss = dino_loss(student, targets, num_crops=10, student_temperature=0.1)
        loss.backward()
        objective.update({"teacher_mean": teacher.mean(dim=0, keepdim=True)}, {})
        assert abs(loss.item() - reference[loss_name].item()) < 1e-5
        torch.testing.assert_close(student.grad, reference[gradient_name], atol=1e-6, rtol=0)
        torch.testing.assert_close(objective.center, reference[center_name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_crops", [2, 3, 8])
@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_and_gradient_equal_the_definition(num_crops, num_images, temperature):
    generator = torch.Generator().manual_seed(num_crops)
    student = torch.randn(num_crops * num_images, 33, generator=generator).requires_grad_()
    teacher = torch.randn(2 * num_images, 33, generator=generator).mul(5).softmax(-1)
    expected = plain_loss(student, teacher, num_crops, temperature)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    loss = dino_loss(student, teacher, num_crops, temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_forward_uses_old_center_and_reports_the_mean():
    objective = Dino(BACKBONE, DINO)
    objective.student.backbone.eval(), objective.teacher.backbone.eval()  # the same outputs at every call
    with torch.no_grad():
        objective.center.copy_(torch.linspace(-1, 1, 20))
    views = crops()
    output = objective(objective.student, views, LATER)
    student, teacher = objective.student(views).logits, objective.teacher(views[:2]).logits
    targets = ((teacher - torch.linspace(-1, 1, 20)) / 0.04).softmax(-1)
    torch.testing.assert_close(output.loss, plain_loss(student, targets, 4, 0.1))
    torch.testing.assert_close(output.statistics["teacher_mean"], teacher.mean(0, keepdim=True))
    assert torch.equal(objective.center, torch.linspace(-1, 1, 20).view(1, 20))  # forward does not change the center
    entropy = -(targets * targets.clamp(min=1e-38).log()).sum(-1).mean()
    torch.testing.assert_close(output.terms["teacher_entropy"], entropy)
    assert 0 <= output.terms["teacher_entropy"] <= math.log(20)
    torch.testing.assert_close(output.terms["center_norm"], torch.linspace(-1, 1, 20).norm())
    features = objective.teacher(views[:2]).features
    expected = (features / features.norm(dim=1, keepdim=True)).std(dim=0, correction=0).mean()
    torch.testing.assert_close(output.terms["feature_std"], expected)
    assert output.terms["loss"] == output.loss and not any(term.requires_grad for term in output.terms.values())


def test_sinkhorn_targets_come_from_the_micro_batch_alone():
    """The targets equal `sinkhorn_knopp` of all teacher rows; the center is measured and not used."""
    objective = Dino(BACKBONE, dataclasses.replace(DINO, centering="sinkhorn_knopp"))
    objective.student.backbone.eval(), objective.teacher.backbone.eval()
    views = crops()
    outputs = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            objective.center.copy_(shift * torch.linspace(-1, 1, 20))
        outputs.append(objective(objective.student, views, LATER))
    student, teacher = objective.student(views).logits, objective.teacher(views[:2]).logits
    q = (teacher.double() / 0.04).exp().T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / 20
        q = q / q.sum(0, keepdim=True) / 8
    torch.testing.assert_close(outputs[0].loss, plain_loss(student, (8 * q.T).float(), 4, 0.1))
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    objective.update(outputs[0].statistics, {})
    torch.testing.assert_close(objective.center, 0.9 * torch.linspace(-1, 1, 20).view(1, -1) + 0.1 * teacher.mean(0))


def test_koleo_is_added_for_each_global_crop_of_the_student():
    plain, regularized = (Dino(BACKBONE, dataclasses.replace(DINO, koleo_weight=weight)) for weight in (0.0, 0.3))
    views, outputs = crops(), []
    for objective in (plain, regularized):
        objective.student.backbone.eval(), objective.teacher.backbone.eval()
        outputs.append(objective(objective.student, views, LATER))
    expected = 0.0
    for view in views[:2]:
        unit = torch.nn.functional.normalize(plain.student([view]).features, dim=1)
        expected -= (torch.cdist(unit, unit) + 9 * torch.eye(4)).amin(1).log().mean()
    torch.testing.assert_close(outputs[1].terms["koleo"], expected.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss + 0.3 * outputs[1].terms["koleo"])
    assert "koleo" not in outputs[0].terms and not outputs[1].terms["koleo"].requires_grad
    outputs[1].loss.backward()
    assert all(parameter.grad is not None for parameter in regularized.student.parameters())


def test_center_moves_once_with_the_mean_of_the_step():
    """Two micro-batches and one update with the mean of their statistics equal one batch of both."""
    halves = [crops(images=2, seed=seed) for seed in (0, 1)]
    whole = [torch.cat(pair) for pair in zip(*halves)]
    centers = []
    for batches in (halves, [whole]):
        objective = Dino(dataclasses.replace(BACKBONE, stem="patch"), DINO, seed=4)
        means = [objective(objective.student, batch, LATER).statistics["teacher_mean"] for batch in batches]
        objective.update({"teacher_mean": torch.stack(means).mean(dim=0)}, {})
        centers.append(objective.center)
    torch.testing.assert_close(*centers)
    assert centers[0].abs().sum() > 0


def test_last_layer_is_frozen_in_the_first_epoch():
    for progress, frozen in ((FIRST_EPOCH, True), (Progress(99, 100, 1000), True), (LATER, False)):
        objective = Dino(BACKBONE, DINO)
        objective(objective.student, crops(), progress).loss.backward()
        gradients = {name: parameter.grad for name, parameter in objective.student.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        assert bool(gradients["head.last_layer.weight_v"].any()) is not frozen
        assert gradients["backbone.pos_embed"].any()
        assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_teacher_starts_as_the_student_without_drop_path():
    objective = Dino(BACKBONE, DINO, seed=3)
    student, teacher = objective.student.state_dict(), objective.teacher.state_dict()
    assert student.keys() == teacher.keys() and all(torch.equal(student[name], teacher[name]) for name in student)
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
    assert objective.teacher.training
    views = crops()
    assert torch.equal(objective.teacher(views[:2]).logits, objective.teacher(views[:2]).logits)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in objective.student.backbone.blocks]
    assert max(rates) == pytest.approx(0.1)


def test_exported_backbone_is_the_teacher_with_its_own_statistics():
    objective = Dino(BACKBONE, DINO)
    output = objective(objective.student, crops(), LATER)
    output.loss.backward()
    torch.optim.SGD(objective.student.parameters(), lr=1.0).step()
    objective.update_teacher(objective.student.named_parameters(), momentum=0.5)
    exported = objective.export_backbone()
    own = objective.teacher.backbone.state_dict()
    assert not exported.training and objective.teacher.training
    assert all(torch.equal(value, own[name]) for name, value in exported.state_dict().items())
    student = objective.student.backbone.state_dict()
    # the student's stem has also seen the local crops
    assert not torch.equal(own["patch_embed.norm3.running_mean"], student["patch_embed.norm3.running_mean"])
    with torch.no_grad():
        exported.pos_embed.zero_()
    assert objective.teacher.backbone.pos_embed.any()


def test_a_wrapped_student_is_called_instead():
    class Engine:
        """A stand-in for an engine around the student, which counts and forwards calls."""

        def __init__(self, module: MultiCropModel) -> None:
            self.module, self.calls = module, 0

        def __call__(self, *inputs, **options):
            self.calls += 1
            return self.module(*inputs, **options)

    objective = Dino(BACKBONE, DINO)
    engine = Engine(objective.student)
    assert objective(engine, crops(), LATER).loss.isfinite()
    assert engine.calls == 1


def test_training_on_one_batch_lowers_the_loss():
    """The center settles first. Before that all targets are the mean of the random head and too easy."""
    objective = Dino(dataclasses.replace(BACKBONE, drop_path=0.0), DINO, seed=5)
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=2e-3)
    for _ in range(60):
        objective.update(objective(objective.student, crops(images=6), LATER).statistics, {})
    losses = []
    for _ in range(30):
        output = objective(objective.student, crops(images=6), LATER)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_teacher_temperature_warms_up():
    """As released: np.linspace over the epochs of the warm-up, constant within an epoch, its end in the last of them."""
    config = dataclasses.replace(DINO, warmup_teacher_temperature=0.02, warmup_teacher_temperature_epochs=3)

    def temperatures(*seen: int) -> list[float]:
        return [config.teacher_temperature_at(Progress(samples, 100, 1000)) for samples in seen]

    assert temperatures(0, 99, 100, 150, 200, 299, 300, 900) == pytest.approx([0.02] * 2 + [0.03] * 2 + [0.04] * 4)
    config = dataclasses.replace(config, warmup_teacher_temperature_epochs=1)
    assert temperatures(0, 99, 100) == pytest.approx([0.02, 0.02, 0.04])
    assert DINO.teacher_temperature_at(FIRST_EPOCH) == 0.04


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("out_dim", 0),
        ("student_temperature", 0.0),
        ("center_momentum", 1.1),
        ("freeze_last_layer_epochs", -1),
        ("centering", "sinkhorn"),
        ("koleo_weight", -0.1),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        dataclasses.replace(DINO, **{field: value})
    assert OmegaConf.to_object(OmegaConf.structured(DinoConfig)) == DinoConfig()


def test_one_crop_is_refused():
    objective = Dino(BACKBONE, DINO)
    with pytest.raises(ValueError, match="got 1 crops"):
        objective(objective.student, crops()[:1], LATER)


@pytest.mark.parametrize(
    ("student", "teacher", "num_crops"),
    [
        ((4, 8), (4, 8), 1),
        ((7, 8), (4, 8), 3),
        ((6, 8), (5, 8), 3),
        ((6, 8), (4, 7), 3),
        ((4, 8), (6, 8), 2),
        ((0, 8), (0, 8), 2),
    ],
)
def test_logits_that_do_not_fit_are_refused(student, teacher, num_crops):
    with pytest.raises(ValueError, match=r"student logits \(V \* B, K\).*at least 2.*num_crops " + str(num_crops)):
        dino_loss(torch.zeros(student), torch.zeros(teacher), num_crops, 0.1)
