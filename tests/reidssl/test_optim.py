"""Parameter groups, optimizers and clipping."""

import pytest
import torch

from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from reidssl.optim import (
    FirstBroken,
    broken_as_nan,
    build_optimizer,
    can_mask,
    clip_global_,
    clip_per_tensor_,
    decay_by_layer,
    masked,
    parameter_groups,
    sgd_groups,
)

CONFIG = VitConfig(width=24, depth=1, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def names_in(group, model):
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_decay_spares_biases_and_norms_only():
    vit = build_vit(CONFIG)
    vit.blocks[0].mlp.fc1.weight.requires_grad_(False)
    decayed, plain = parameter_groups(vit.named_parameters(), 0.04)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.04, 0.0)
    decayed_names, plain_names = names_in(decayed, vit), names_in(plain, vit)
    assert {"cls_token", "pos_embed", "patch_embed.conv1.weight", "blocks.0.attn.qkv.weight"} <= decayed_names
    assert {"norm.weight", "patch_embed.norm1.batch.weight", "blocks.0.attn.qkv.bias"} <= plain_names
    trained = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    assert decayed_names | plain_names == trained and not decayed_names & plain_names


def test_sgd_doubles_the_rate_of_biases_and_leaves_frozen_ones_out():
    model = ReidModel(build_vit(CONFIG), num_classes=4)
    weights, biases = sgd_groups(model.named_parameters(), lr=4e-4, weight_decay=1e-4)
    assert (weights["lr"], biases["lr"]) == (4e-4, 8e-4)
    assert weights["weight_decay"] == biases["weight_decay"] == 1e-4
    assert all(name.endswith(".bias") for name in names_in(biases, model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names_in(weights, model) | names_in(biases, model) == trained
    assert "bottleneck.bias" not in trained
    torch.optim.SGD([weights, biases], momentum=0.9)


def test_layers_before_learn_slower():
    model = ReidModel(build_vit(VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)), 4)
    groups = sgd_groups(model.named_parameters(), lr=1.0, weight_decay=1e-4)
    assert decay_by_layer(groups, model.named_parameters(), 2, 1.0) is groups
    rates = {}
    for group in decay_by_layer(groups, model.named_parameters(), 2, 0.5):
        assert group["lr"] == group["lr_factor"] * group["base_factor"] and group["weight_decay"] == 1e-4 and group["params"]
        rates |= dict.fromkeys(names_in(group, model), group["lr"])
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        "classifier.weight": 1.0,
        "backbone.norm.bias": 2.0,
        "bottleneck.weight": 1.0,
        "backbone.blocks.1.mlp.fc1.weight": 0.5,
        "backbone.blocks.1.mlp.fc1.bias": 1.0,
        "backbone.blocks.0.attn.qkv.weight": 0.25,
        "backbone.cls_token": 0.125,
        "backbone.pos_embed": 0.125,
        "backbone.patch_embed.conv1.weight": 0.125,
        "backbone.patch_embed.proj.bias": 0.25,
    }
    assert {name: rates[name] for name in expected} == expected
    decayed = decay_by_layer(parameter_groups(model.named_parameters(), 0.05), model.named_parameters(), 2, 0.5)
    assert {group["weight_decay"] for group in decayed} == {0.05, 0.0} and "lr" not in decayed[0]
    torch.optim.AdamW(decayed, lr=1e-3)
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\]: got 0"):
        decay_by_layer(groups, model.named_parameters(), 2, 0)


def test_each_tensor_is_clipped_by_itself():
    small, large, unused = (torch.nn.Parameter(torch.zeros(4)) for _ in range(3))
    small.grad, large.grad = torch.full((4,), 0.5), torch.full((4,), 50.0)
    largest = clip_per_tensor_([small, large, unused], max_norm=3.0)
    assert largest.item() == pytest.approx(100.0)
    assert torch.equal(small.grad, torch.full((4,), 0.5))  # norm 1: as it was
    torch.testing.assert_close(large.grad, torch.full((4,), 1.5))
    assert unused.grad is None


def test_clipping_nothing():
    assert clip_per_tensor_([torch.nn.Parameter(torch.zeros(1))], max_norm=1.0) == 0
    with pytest.raises(ValueError, match="max_norm"):
        clip_per_tensor_([], max_norm=0.0)


def test_global_clipping_scales_all_by_one_factor():
    first, second, unused = (torch.nn.Parameter(torch.zeros(4)) for _ in range(3))
    first.grad, second.grad = torch.full((4,), 1.5), torch.full((4,), 2.0)  # norms 3 and 4, together 5
    assert clip_global_([first, second, unused], max_norm=6.0).item() == pytest.approx(5.0)
    assert torch.equal(first.grad, torch.full((4,), 1.5))  # below: as it was
    assert clip_global_(iter([first, second, unused]), max_norm=2.5).item() == pytest.approx(5.0)
    torch.testing.assert_close(first.grad, torch.full((4,), 0.75))
    torch.testing.assert_close(second.grad, torch.full((4,), 1.0))
    assert unused.grad is None and clip_global_([unused], max_norm=1.0) == 0
    with pytest.raises(ValueError, match="max_norm must be positive: got 0"):
        clip_global_([], max_norm=0.0)


def run_steps(name: str, decay: float, value: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    parameter = torch.nn.Parameter(value.clone())
    optimizer = build_optimizer(name, [{"params": [parameter], "weight_decay": decay}], lr=0.5, momentum=0.8, beta2=0.95)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("decay", [0.1, 0.0])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_two_steps_equal_the_formulas(name, decay):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    w, v, s = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, g in enumerate(gradients, 1):
        if name == "adamw":
            v, s = 0.8 * v + 0.2 * g, 0.95 * s + 0.05 * g * g
            moved = (v / (1 - 0.8**step)) / ((s / (1 - 0.95**step)).sqrt() + 1e-8)
            w = w * (1 - 0.5 * decay) - 0.5 * moved
            continue
        ratio = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8) if name == "lars" and decay else 1.0
        v = 0.8 * v + ratio * (g + decay * w)
        w = w - 0.5 * v
    torch.testing.assert_close(run_steps(name, decay, start, gradients), w)


def test_a_weight_of_zero_still_moves_under_lars():
    torch.testing.assert_close(run_steps("lars", 0.1, torch.zeros(2), [torch.ones(2)]), torch.full((2,), -0.5))


def test_unknown_optimizers_are_named():
    with pytest.raises(ValueError, match="adamw, sgd, lars: got 'lamb'"):
        build_optimizer("lamb", [], lr=0.1)


def test_what_may_rest_has_a_decayed_group_of_its_own():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 4), "last_layer": torch.nn.Linear(4, 2, bias=False)})
    decayed, plain, frozen = parameter_groups(model.named_parameters(), 0.1, ("last_layer.weight",))
    assert frozen["params"] == [model["last_layer"].weight] and frozen["freezable"] and frozen["weight_decay"] == 0.1
    assert decayed["params"] == [model["body"].weight] and plain["params"] == [model["body"].bias]
    assert len(parameter_groups(model.named_parameters(), 0.1, ("nowhere",))) == 2


def test_adamw_is_plain_on_a_cpu():
    """The plain optimizer has the rounding of the published curves; a fused one differs in the last bits."""
    assert not can_mask(build_optimizer("adamw", [{"params": [torch.nn.Parameter(torch.zeros(2))]}], lr=0.1))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_broken_step_changes_nothing_and_the_next_ones_go_on(kind):
    options = {"fused": True, "lr": 0.1, "weight_decay": 0.2} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    weights = [torch.nn.Parameter(torch.arange(1.0, 4.0)) for _ in range(2)]
    ours, plain = (kind([weight], **options) for weight in weights)
    for step, gradient in enumerate([1.0, float("nan"), -2.0, float("inf"), 0.5]):
        weights[0].grad = weights[1].grad = torch.full((3,), gradient)
        before = weights[0].detach().clone()
        with masked(ours, clip_global_([weights[0]], float("inf"))):
            ours.step()
        if torch.isfinite(weights[0].grad).all():
            plain.step()
            assert not torch.equal(weights[0], before)
        assert torch.equal(weights[0], weights[1]), step
    states = [optimizer.state[weight] for optimizer, weight in zip((ours, plain), weights, strict=True)]
    assert states[0].keys() == states[1].keys() and states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_optimizer_that_cannot_be_masked_is_refused():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="got AdamW without fused=True"), masked(optimizer, torch.ones(())):
        optimizer.step()


def test_a_broken_loss_breaks_every_gradient_and_a_good_one_none():
    weight = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    good = (weight * weight).sum()
    (expected,) = torch.autograd.grad(good, weight, retain_graph=True)
    assert torch.equal(torch.autograd.grad(broken_as_nan(good), weight, retain_graph=True)[0], expected)
    assert torch.equal(broken_as_nan(good), good)
    infinite = good + torch.tensor(float("inf"))  # the gradient itself is finite
    assert torch.isfinite(torch.autograd.grad(infinite, weight, retain_graph=True)[0]).all()
    assert torch.isnan(torch.autograd.grad(broken_as_nan(infinite), weight)[0]).all()


def test_the_first_broken_step_is_remembered():
    broken = FirstBroken(torch.device("cpu"))
    assert broken.read() is None
    for step, (loss, entropy) in enumerate([(1.0, 2.0), (3.0, float("inf")), (float("nan"), 4.0)], 5):
        broken.watch(step, {"loss": torch.tensor(loss), "entropy": torch.tensor(entropy)})
    assert broken.read() == (6, {"loss": 3.0, "entropy": float("inf")})
    fine = FirstBroken(torch.device("cpu"))
    fine.watch(1, {"loss": torch.tensor(1.0)})
    assert fine.read() is None
