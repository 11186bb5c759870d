"""Masked DINO against plain sums over crops and patches, and the common interface."""

import copy
import dataclasses
import math

import pytest
import torch
from omegaconf import OmegaConf

from reidssl.models.model_config import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Progress
from reidssl.objectives.dino_mim import DinoMim, DinoMimConfig, patch_loss
from reidssl.objectives.masking import patch_masks
from reidssl.seeding import mix

BACKBONE = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)
MIM = DinoMimConfig(out_dim=20, hidden=12, bottleneck=6, mask_share=0.6, patch_weight=0.7)
LATER = Progress(100, 100, 1000, 3)


def crops(num_local: int = 2, images: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(32, 16)] * 2 + [(16, 8)] * num_local
    return [torch.randn(images, 3, *size, generator=generator) for size in sizes]


def frozen_norms(objective: DinoMim) -> DinoMim:
    """Freeze the batch norms, so that outputs are the same at every call and for every grouping of crops."""
    objective.student.backbone.eval(), objective.teacher.backbone.eval()
    return objective


def plain(objective: DinoMim, views: list[torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """Total loss from the backbone's tokens, image by image and patch by patch."""
    student, teacher, config = objective.student, objective.teacher, objective.config
    patch_heads = [model.patch_head or model.head for model in (student, teacher)]
    tokens_s, tokens_t = [], []
    for view in range(2):
        rows = hidden[view * 4 : (view + 1) * 4]
        tokens_s.append(student.backbone.forward_tokens(views[view], None, rows, student.mask_token))
        tokens_t.append(teacher.backbone.forward_tokens(views[view]))
    class_s = [student.head(tokens[:, 0]) for tokens in tokens_s] + [student.head(student.backbone(v)) for v in views[2:]]
    class_t = [((teacher.head(tokens[:, 0]) - objective.center) / 0.04).softmax(-1) for tokens in tokens_t]
    pairs = [
        -(target * (guess / 0.1).log_softmax(-1)).sum(-1).mean()
        for t, target in enumerate(class_t)
        for v, guess in enumerate(class_s)
        if t != v
    ]
    of_images = []
    for view in range(2):
        for image in range(4):
            losses = []
            for patch in hidden[view * 4 + image].nonzero().flatten().tolist():
                target = (patch_heads[1](tokens_t[view][image, 1 + patch][None]) - objective.patch_center) / 0.04
                guess = patch_heads[0](tokens_s[view][image, 1 + patch][None]) / 0.1
                losses.append(-(target.softmax(-1) * guess.log_softmax(-1)).sum())
            of_images.append(sum(losses) / len(losses) if losses else torch.zeros(()))
    return sum(pairs) / len(pairs) + config.patch_weight * sum(of_images) / len(of_images)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_local", [0, 2])
def test_value_and_gradient_equal_the_plain_sum(shared, num_local):
    config = dataclasses.replace(MIM, shared_head=shared, patch_out_dim=9)
    objective = frozen_norms(DinoMim(BACKBONE, config, seed=5))
    with torch.no_grad():
        objective.center.copy_(torch.linspace(-0.5, 0.5, 20))
        objective.patch_center.copy_(torch.linspace(0.3, -0.2, objective.patch_center.shape[1]))
        for parameter in objective.teacher.parameters():  # the teacher must differ from the student
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    views = crops(num_local)
    masks = patch_masks(mix(5, 100, 3), 8, (4, 2), config.mask_share, config.mask_ratio, config.mask_aspect)
    output = objective(objective.student, views, LATER)
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in objective.student.named_parameters()}
    objective.student.zero_grad()
    with torch.no_grad():
        objective.student.requires_grad_(True)
    expected = plain(objective, views, masks.hidden)
    expected.backward()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in objective.student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3)
    assert found["mask_token"].any() and all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_terms_and_statistics():
    objective = frozen_norms(DinoMim(BACKBONE, dataclasses.replace(MIM, koleo_weight=0.1), seed=5))
    views = crops()
    output = objective(objective.student, views, LATER)
    terms = output.terms
    torch.testing.assert_close(output.loss.detach(), terms["dino"] + 0.7 * terms["patch"] + 0.1 * terms["koleo"])
    assert 0 <= terms["patch_entropy"] <= math.log(20) and not any(term.requires_grad for term in terms.values())
    masks = patch_masks(mix(5, 100, 3), 8, (4, 2), 0.6, MIM.mask_ratio)
    patches = objective.teacher.backbone.forward_tokens(torch.cat(views[:2]))[:, 1:][masks.hidden]
    torch.testing.assert_close(output.statistics["patch_mean"], objective.teacher.head(patches).mean(0, keepdim=True))
    objective.update(output.statistics, {})
    torch.testing.assert_close(objective.patch_center, 0.1 * output.statistics["patch_mean"])
    torch.testing.assert_close(objective.center, 0.1 * output.statistics["teacher_mean"])


def test_sinkhorn_spreads_the_patches_too():
    config = dataclasses.replace(MIM, centering="sinkhorn_knopp")
    objective = frozen_norms(DinoMim(BACKBONE, config, seed=5))
    output = objective(objective.student, crops(), LATER)
    with torch.no_grad():
        objective.patch_center.fill_(1.0).view(-1)[0] = -5.0  # unused
    assert torch.equal(objective(objective.student, crops(), LATER).loss, output.loss)


def test_masks_follow_the_place_in_the_run_alone():
    objective = frozen_norms(DinoMim(BACKBONE, MIM, seed=5))
    places = [LATER, dataclasses.replace(LATER, micro_batch=4), dataclasses.replace(LATER, samples_seen=116), LATER]
    losses = [objective(objective.student, crops(), place).terms["patch"].item() for place in places]
    assert losses[0] == losses[3] and len(set(losses)) == 3


def test_mask_token_is_what_the_student_sees():
    """Pixels under the mask do not change the student's output (patch stem), but they change the teacher's."""
    objective = frozen_norms(DinoMim(dataclasses.replace(BACKBONE, stem="patch"), MIM, seed=5))
    image = crops(0, images=1)[0]
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 3] = True  # row 1, column 1 of 4 x 2
    other = image.clone()
    other[:, :, 8:16, 8:16] += 1.0
    arguments = {"hidden": hidden, "places": torch.tensor([3])}
    for model, same in ((objective.student, True), (objective.teacher, False)):
        outputs = [model([view], **arguments) for view in (image, other)]
        assert torch.equal(outputs[0].logits, outputs[1].logits) is same
        assert torch.equal(outputs[0].patch_logits, outputs[1].patch_logits) is same
    with torch.no_grad():
        objective.student.mask_token.add_(1.0)
    assert not torch.equal(objective.student([image], **arguments).logits, outputs[0].logits)


def test_without_weight_on_patches_only_the_class_tokens_count():
    objective = frozen_norms(DinoMim(BACKBONE, dataclasses.replace(MIM, patch_weight=0.0), seed=5))
    output = objective(objective.student, crops(), LATER)
    assert output.loss.item() == output.terms["dino"].item() != output.terms["patch"].item()


def test_last_layers_are_frozen_in_the_first_epoch():
    for shared in (True, False):
        objective = DinoMim(BACKBONE, dataclasses.replace(MIM, shared_head=shared, patch_out_dim=9))
        objective(objective.student, crops(), Progress(0, 100, 1000)).loss.backward()
        for name, parameter in objective.student.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()) is not name.endswith("last_layer.weight_v"), name


def test_state_goes_round_and_the_teacher_has_no_mask_token():
    objective, other = (DinoMim(BACKBONE, MIM, seed=seed) for seed in (1, 2))
    output = objective(objective.student, crops(), LATER)
    objective.update(output.statistics, {})
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(0.01)
    objective.update_teacher(objective.student.named_parameters(), 0.5)
    saved = copy.deepcopy(objective.state_tensors())
    assert {"center", "patch_center"} <= saved.keys() and not any("mask_token" in name for name in saved)
    other.load_state_tensors(saved)
    image = crops()[0]
    assert torch.equal(other.export_backbone()(image), objective.export_backbone()(image))
    assert torch.equal(other.patch_center, objective.patch_center) and other.patch_center.any()


def test_training_on_one_batch_lowers_the_patch_loss():
    objective = DinoMim(BACKBONE, dataclasses.replace(MIM, mask_share=1.0), seed=5)
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=2e-3)
    for _ in range(40):
        objective.update(objective(objective.student, crops(images=6), LATER).statistics, {})
    losses = []
    for _ in range(30):
        output = objective(objective.student, crops(images=6), LATER)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.terms["patch"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_patch_loss_weighs_rows():
    logits, targets = torch.randn(3, 5), torch.randn(3, 5).softmax(-1)
    weights = torch.tensor([0.5, 0.0, 2.0])
    expected = sum(-w * (t * (row / 0.2).log_softmax(-1)).sum() for w, t, row in zip(weights, targets, logits))
    torch.testing.assert_close(patch_loss(logits, targets, weights, 0.2), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_share", 0.0),
        ("mask_ratio", (0.5, 0.2)),
        ("mask_ratio", (0.2, 1.0)),
        ("mask_aspect", 1.5),
        ("patch_weight", -1.0),
        ("patch_out_dim", 0),
        ("out_dim", 0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        dataclasses.replace(MIM, **{field: value})
    assert OmegaConf.to_object(OmegaConf.structured(DinoMimConfig)) == DinoMimConfig()


def test_crops_of_different_sizes_are_refused_and_the_config_chooses_it():
    objective = build_objective(BACKBONE, ObjectiveConfig(name="dino_mim", dino_mim=MIM))
    assert isinstance(objective, DinoMim)
    with pytest.raises(ValueError, match=r"2 global crops of equal size first: got \[\(4, 3, 32, 16\), \(4, 3, 16, 8\)\]"):
        objective(objective.student, crops()[1:], LATER)
