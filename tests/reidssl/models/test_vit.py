"""The backbone against outputs of the released code, and properties of every size."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig
from reidssl.models.released import to_flat
from reidssl.models.vit import Vit, build_vit, vit_config
from reidssl.models.weights import load_into
from tests.reference.fill_weights import arrays, fill, images, released_state_dict
from tests.reidssl.models.plain_vit import plain_vit

SMALL = VitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def filled(layout: str, config: VitConfig, rename=lambda name: name) -> Vit:
    vit = build_vit(config)
    load_into(vit, {to_flat(rename(name)): value for name, value in released_state_dict(layout).items()}, layout)
    return vit.eval()


@pytest.fixture(scope="module")
def reference():
    return arrays("models.npz")


@pytest.fixture(scope="module")
def ics_vit():
    return filled("dino_ours_vit_small", VitConfig())


@torch.no_grad()
@pytest.mark.parametrize(
    ("output", "size", "seed"),
    [("dino_ours_vit_small_cls", (256, 128), 0), ("dino_ours_vit_small_cls_local", (128, 64), 1)],
)
def test_ics_backbone_equals_released(ics_vit, reference, output, size, seed):
    torch.testing.assert_close(ics_vit(images(*size, seed=seed)), reference[output], atol=1e-5, rtol=0)


@torch.no_grad()
def test_plain_backbone_equals_released(reference):
    vit = filled("dino_vit_small", VitConfig(stem="patch"))
    torch.testing.assert_close(vit(images()), reference["dino_vit_small_cls"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_supervised_backbone_equals_released(reference):
    state = {
        name.removeprefix("base."): fill(name.removeprefix("base."), tuple(value.shape))
        for name, value in released_state_dict("build_transformer_vit_small_ics").items()
    }
    vit = build_vit(VitConfig())
    load_into(vit, {to_flat(name): value for name, value in state.items()}, "reference")
    torch.testing.assert_close(vit.eval()(images()), reference["transreid_vit_small_ics_out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_written_out_backbone_equals_released_too(ics_vit, reference):
    """This allows the next test to use the plain backbone where there are no stored outputs of the published code."""
    for output, size, seed in (("cls", (256, 128), 0), ("cls_local", (128, 64), 1)):
        found = plain_vit(ics_vit.state_dict(), images(*size, seed=seed), ics_vit.config)
        torch.testing.assert_close(found, reference[f"dino_ours_vit_small_{output}"], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "fields", "image"),
    [
        ("base", {"image_size": (384, 128)}, (384, 128)),
        ("base", {"stem": "patch", "image_size": (384, 128)}, (128, 64)),
        ("tiny", {"stride": 12}, (256, 128)),
        ("tiny", {"stem": "patch", "stride": 14, "gem_pooling": True}, (384, 128)),
        ("tiny", {"stem": "patch", "stride": 12, "layer_scale": 0.1}, (128, 64)),
    ],
)
def test_other_sizes_equal_the_written_out_backbone(size, fields, image):
    config = vit_config(size, **fields)
    vit = build_vit(config)
    vit.load_state_dict({name: fill(name, tuple(value.shape)) for name, value in vit.state_dict().items()})
    expected = plain_vit(vit.state_dict(), images(*image), config)
    torch.testing.assert_close(vit.eval()(images(*image)), expected, atol=1e-5, rtol=0)


def test_sizes_have_the_published_numbers_of_parameters():
    """Millions of parameters: ViT-Ti 5.5, ViT-S 21.6, ViT-B 85.8, ViT-L 303.3 at 224 x 224 with the patch projection."""
    for size, millions in {"tiny": 5.5, "small": 21.7, "base": 85.8, "large": 303.3}.items():
        with torch.device("meta"):
            vit = Vit(vit_config(size, stem="patch", image_size=(224, 224)))
        assert sum(parameter.numel() for parameter in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    with pytest.raises(ValueError, match="size must be one of tiny, small, base, large: got 'huge'"):
        vit_config("huge")


@pytest.mark.parametrize(("stride", "grid"), [(16, (16, 8)), (14, (18, 9)), (12, (21, 10)), (8, (31, 15))])
@pytest.mark.parametrize("stem", ["ics", "patch"])
def test_overlapping_patches_have_the_published_grid(stem, stride, grid):
    """Remaining pixels at the bottom and right are not used, as in the published overlapping models."""
    config = vit_config("tiny", stem=stem, stride=stride, depth=1)
    assert config.grid(256, 128) == grid
    assert build_vit(config).patch_embed(torch.zeros(1, 3, 256, 128)).shape[2:] == grid


@torch.no_grad()
def test_layer_scale_is_there_and_changes_nothing_else():
    plain = build_vit(SMALL).eval()
    scaled = build_vit(dataclasses.replace(SMALL, layer_scale=1.0)).eval()
    assert scaled.state_dict().keys() - plain.state_dict().keys() == {f"blocks.{i}.ls{j}.gamma" for i in range(3) for j in (1, 2)}
    scaled.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(scaled(images(32, 16)), plain(images(32, 16)))


@torch.no_grad()
def test_interpolating_to_a_size_would_not_equal_released(ics_vit, reference, monkeypatch):
    """The scale factors matter: the tolerance of the test above distinguishes the two ways of resizing."""
    grid = ics_vit.pos_embed[:, 1:].unflatten(1, (16, 8)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(8, 4), mode="bicubic", align_corners=False)
    by_size = torch.cat((ics_vit.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)
    monkeypatch.setattr(ics_vit, "_positions", lambda rows, columns: by_size)
    difference = ics_vit(images(128, 64, seed=1)) - reference["dino_ours_vit_small_cls_local"]
    assert difference.abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("stem", ["ics", "patch"])
@pytest.mark.parametrize(("patch_size", "stride", "size", "grid"), [(8, 0, (32, 16), (4, 2)), (8, 4, (32, 20), (7, 4))])
def test_any_grid(stem, patch_size, stride, size, grid):
    config = dataclasses.replace(SMALL, stem=stem, patch_size=patch_size, stride=stride, image_size=size)
    vit = build_vit(config).eval()
    num_patches = grid[0] * grid[1]
    assert config.grid(*size) == grid
    assert vit.pos_embed.shape == (1, 1 + num_patches, 24)
    tokens = vit.forward_tokens(images(*size))
    assert tokens.shape == (2, 1 + num_patches, 24)
    torch.testing.assert_close(vit(images(*size)), tokens[:, 0])
    assert vit(images(48, 24)).shape == (2, 24)


@torch.no_grad()
def test_class_attention_is_what_the_last_block_uses():
    """Attention weights times values equal the class token's input to the last output projection."""
    vit = build_vit(SMALL).eval()
    seen = {}
    last = vit.blocks[-1].attn
    last.qkv.register_forward_hook(lambda module, inputs, output: seen.update(qkv=output))
    last.proj.register_forward_pre_hook(lambda module, inputs: seen.update(mixed=inputs[0]))
    vit(images(32, 16))
    values = seen["qkv"].unflatten(-1, (3, 3, 8))[:, :, 2].transpose(1, 2)  # (B, heads, 1 + N, 8)
    patches = vit.class_attention(images(32, 16))
    assert patches.shape == (2, 3, 8)
    weights = torch.cat((1 - patches.sum(-1, keepdim=True), patches), dim=-1)
    assert (weights > 0).all()
    mixed = torch.einsum("bhn,bhnc->bhc", weights, values).flatten(1)
    torch.testing.assert_close(mixed, seen["mixed"][:, 0], atol=1e-6, rtol=1e-5)


def test_weights_follow_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build_vit(SMALL, seed=1), build_vit(SMALL, seed=1), build_vit(SMALL, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.pos_embed, other.pos_embed)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for switch in (False, True):
        vit = build_vit(SMALL)
        vit.set_grad_checkpointing(switch)
        vit(images(32, 16)).square().sum().backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_drop_path_acts_in_training_only():
    vit = build_vit(dataclasses.replace(SMALL, drop_path=0.9))
    batch = images(32, 16)
    torch.testing.assert_close(vit.eval()(batch), build_vit(SMALL).eval()(batch))
    vit.train()
    assert not torch.allclose(vit(batch), vit(batch))


@torch.no_grad()
def test_gem_adds_the_generalized_mean_of_the_patches():
    vit = build_vit(dataclasses.replace(SMALL, gem_pooling=True)).eval()
    tokens = vit.forward_tokens(images(32, 16)).double()
    powers = tokens[:, 1:].clamp(min=1e-6) ** 3
    expected = tokens[:, 0] + (powers.sum(1) / 8) ** (1 / 3)
    torch.testing.assert_close(vit(images(32, 16)).double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_camera_embedding():
    vit = build_vit(dataclasses.replace(SMALL, num_cameras=3, camera_weight=2.0)).eval()
    batch = images(32, 16)
    assert not torch.allclose(vit(batch, torch.tensor([0, 0])), vit(batch, torch.tensor([0, 2])))
    shift = vit.camera_embed[[0, 2]].clone()
    with_cameras = vit(batch, torch.tensor([0, 2]))
    without = [build_vit(SMALL).eval() for _ in range(2)]
    for image, camera in enumerate((0, 1)):
        plain = without[image]
        plain.load_state_dict({n: v for n, v in vit.state_dict().items() if n != "camera_embed"})
        plain.pos_embed += 2.0 * shift[camera]  # adding it to all tokens is the same as adding it to all positions
        torch.testing.assert_close(plain(batch)[image], with_cameras[image], atol=1e-5, rtol=1e-5)
    for camids in (None, torch.tensor([0]), torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="cam"):
            vit(batch, camids)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("width", 25),
        ("depth", 0),
        ("mlp_ratio", 0.0),
        ("stride", 17),
        ("stem", "conv"),
        ("patch_size", 7),
        ("stem_width", 7),
        ("drop_path", 1.0),
        ("num_cameras", -1),
        ("layer_scale", -0.1),
        ("image_size", (33, 16)),
        ("image_size", (4, 16)),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        dataclasses.replace(SMALL, **{field: value})


def test_wrong_image_size_is_explained():
    with pytest.raises(ValueError, match="33 x 16"):
        build_vit(SMALL)(images(33, 16))


def test_config_is_a_schema_and_survives_json():
    schema = OmegaConf.structured(VitConfig)
    schema.image_size = [384, 128]
    assert OmegaConf.to_object(schema).image_size == (384, 128)
    assert VitConfig(**{**dataclasses.asdict(SMALL), "image_size": [32, 16]}) == SMALL


@torch.no_grad()
def test_masked_patches_are_replaced_before_the_positions_are_added():
    vit = build_vit(VitConfig(width=24, depth=1, heads=3, patch_size=8, image_size=(32, 16), stem="patch")).eval()
    images = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 5] = mask[1, 0] = True
    token = torch.randn(24, generator=torch.Generator().manual_seed(1))
    seen = []
    vit.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = vit(images, mask=mask, mask_token=token, all_tokens=True)
    assert tokens.shape == (2, 9, 24)
    torch.testing.assert_close(vit(images, mask=mask, mask_token=token), tokens[:, 0])
    vit(images)
    torch.testing.assert_close(seen[0][0, 6], token + vit.pos_embed[0, 6])
    torch.testing.assert_close(seen[0][1, 1], token + vit.pos_embed[0, 1])
    others = torch.cat((torch.zeros(2, 1, dtype=torch.bool), mask), dim=1).logical_not()
    assert torch.equal(seen[0][others], seen[2][others])
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 8\) and come with a mask_token: got torch.bool \(2, 7\)"):
        vit(images, mask=mask[:, 1:], mask_token=token)
    with pytest.raises(ValueError, match="and none"):
        vit(images, mask=mask)


def test_attention_is_fused_in_every_block():
    assert all(block.attn.fused_attn for block in build_vit(VitConfig(width=24, depth=3, heads=3)).blocks)
