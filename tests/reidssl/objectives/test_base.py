"""Common parts of all objectives: crops in groups, the moving-average teacher, and the saved state."""

import pytest
import torch

from reidssl.models.heads import DinoHead
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
from reidssl.objectives.base import MultiCropModel, Progress
from reidssl.objectives.dino import Dino, DinoConfig

BACKBONE = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)
DINO = DinoConfig(out_dim=20, hidden=12, bottleneck=6)


def crops(count: int, height: int, width: int, images: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, height, width, generator=generator) for _ in range(count)]


def test_crops_of_equal_size_share_a_forward_pass_and_keep_their_order():
    model = MultiCropModel(build_vit(BACKBONE), DinoHead(24, 20, 12, 6)).eval()
    batches = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: batches.append(tuple(inputs[0].shape)))
    views = crops(2, 32, 16) + crops(4, 16, 8)
    output = model(views)
    assert batches == [(6, 3, 32, 16), (12, 3, 16, 8)]
    one_by_one = [model([view]) for view in views]
    torch.testing.assert_close(output.logits, torch.cat([single.logits for single in one_by_one]))
    torch.testing.assert_close(output.features, torch.cat([single.features for single in one_by_one]))


def test_half_precision_student_takes_fp32_crops():
    model = MultiCropModel(build_vit(BACKBONE), DinoHead(24, 20, 12, 6)).to(torch.bfloat16)
    assert model(crops(1, 32, 16) + crops(1, 16, 8)).logits.dtype == torch.bfloat16


def test_progress():
    progress = Progress(samples_seen=250, samples_per_epoch=100, samples_total=1000)
    assert (progress.epoch, progress.exact_epoch, progress.fraction) == (2, 2.5, 0.25)


def test_teacher_follows_parameters_by_name_and_keeps_its_own_buffers():
    objective = Dino(BACKBONE, DINO)
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
        for buffer in objective.student.buffers():
            buffer.add_(1)
    names = list(objective.student.named_parameters())
    objective.update_teacher(names[:5], momentum=0.75)
    objective.update_teacher(((name, value.bfloat16()) for name, value in names[5:]), momentum=0.75)
    for name, value in objective.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.25, atol=2e-3, rtol=0)
        assert value.dtype == torch.float32
    for name, value in objective.teacher.named_buffers():
        assert torch.equal(value, before[name])


def test_a_list_moves_the_teacher_at_once_by_the_same_bits():
    one, other = Dino(BACKBONE, DINO), Dino(BACKBONE, DINO)
    values = [(name, torch.randn_like(value)) for name, value in one.student.named_parameters()]
    values[0] = (values[0][0], values[0][1].bfloat16())
    one.update_teacher(values, momentum=0.9)
    other.update_teacher(iter(values), momentum=0.9)
    for (name, moved), expected in zip(one.teacher.named_parameters(), other.teacher.parameters(), strict=True):
        assert torch.equal(moved, expected), name
    one.update_teacher([], momentum=0.9)


def test_teacher_is_not_lost_at_a_momentum_near_one():
    objective = Dino(BACKBONE, DINO)
    start = objective.teacher.backbone.pos_embed.clone()
    with torch.no_grad():
        objective.student.backbone.pos_embed.add_(1.0)
    for _ in range(100):
        objective.update_teacher(objective.student.named_parameters(), momentum=0.9999)
    moved = objective.teacher.backbone.pos_embed - start
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.9999**100), atol=1e-5, rtol=0)


def test_unknown_parameters_and_momenta_are_refused():
    objective = Dino(BACKBONE, DINO)
    with pytest.raises(ValueError, match=r"no parameter 'module\.x'"):
        objective.update_teacher([("module.x", torch.zeros(1))], momentum=0.5)
    with pytest.raises(ValueError, match="momentum"):
        objective.update_teacher([], momentum=1.5)


def test_state_holds_everything_but_the_student():
    objective = Dino(BACKBONE, DINO, seed=1)
    views = crops(2, 32, 16)
    objective.update(objective(objective.student, views, Progress(0, 10, 100)).statistics, {})
    state = {name: value.clone() for name, value in objective.state_tensors().items()}
    teacher = objective.teacher.state_dict()
    assert state.keys() == {"center"} | {f"teacher.{name}" for name in teacher}
    other = Dino(BACKBONE, DINO, seed=2)
    other.load_state_tensors(state)
    other.student.load_state_dict(objective.student.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in other.state_tensors().items())
    outputs = [each(each.student, views, Progress(10, 10, 100)) for each in (objective, other)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)


def test_state_of_another_model_is_refused():
    state = Dino(BACKBONE, DINO).state_tensors()
    objective = Dino(BACKBONE, DINO)
    with pytest.raises(ValueError, match="missing \\['center'\\]"):
        objective.load_state_tensors({name: value for name, value in state.items() if name != "center"})
    with pytest.raises(ValueError, match="center has shape"):
        objective.load_state_tensors(state | {"center": torch.zeros(1, 21)})
