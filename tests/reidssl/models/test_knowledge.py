"""Facts that a file lacks are stated, provided by the caller, or the file is refused; they are never guessed silently."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer

from reidssl.models.exported import torch_bytes
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import released_checkpoint
from reidssl.models.vit import build_vit
from reidssl.models.weights import LoadConfig, Unsaid, load_reid, load_vit, model_bytes, save_model
from tests.reference.fill_weights import images, released_state_dict

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def timm_state(width: int, depth: int = 1, size: int = 32, heads: int = 1) -> dict:
    return VisionTransformer(
        img_size=size, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    ).state_dict()


def known(source, **options):
    reports = []
    load_vit(source, on_load=reports.append, **options)
    return reports[0].about.answers, str(reports[0])


@torch.no_grad()
def test_twelve_heads_are_never_six(tmp_path):
    """A bare ViT-S could be timm's (6 heads) or MoCo v3's (12). MoCo v3's own wrapper identifies it."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=384, depth=2, num_heads=12, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    torch.save({"state_dict": {f"module.base_encoder.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "moco.pth")
    with pytest.raises(
        Unsaid,
        match=r"bare.pth is a plain vision transformer of unknown origin, width 384.*usual are 6 \(timm, "
        r"DeiT, DINO\), 12 \(MoCo v3\).*Give load.heads=6 or load.heads=12$",
    ):
        load_vit(tmp_path / "bare.pth")
    answers, line = known(tmp_path / "moco.pth")
    assert answers["heads"][:2] == (12, "assumed") and "MoCo v3 checkpoint" in line and "heads 12 (as MoCo v3 published)" in line
    expected = model.forward_features(images(32, 32))[:, 0]
    for source, options in (("bare.pth", {"heads": 12}), ("bare.pth", {"given": LoadConfig(heads=12)}), ("moco.pth", {})):
        torch.testing.assert_close(load_vit(tmp_path / source, **options)(images(32, 32)), expected, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(load_vit(tmp_path / "bare.pth", heads=6)(images(32, 32)), expected, atol=1e-2, rtol=0)


def test_every_width_that_leaves_heads_open_is_refused_and_the_others_are_stated(tmp_path):
    for width, depth, heads in ((768, 12, 12), (1280, 32, 16)):
        tensors = {name: value for name, value in timm_state(64, depth).items()}
        wide = {
            name: torch.zeros(
                [width if n == 64 else 3 * width if n == 192 else 4 * width if n == 256 else n for n in value.shape]
            )
            for name, value in tensors.items()
            if "patch_embed" not in name
        }
        wide |= {"patch_embed.proj.weight": torch.zeros(width, 3, 16, 16), "patch_embed.proj.bias": torch.zeros(width)}
        if width < 1000:  # a ViT-H takes gigabytes; its heads come from the same table
            answers, line = known(torch_bytes(wide))
            assert answers["heads"][:2] == (heads, "assumed") and f"assumed: heads {heads}" in line
    for width in (192, 384, 448):
        with pytest.raises(Unsaid, match=r"does not say how many attention heads"):
            load_vit(torch_bytes(timm_state(width)))
    with pytest.raises(ValueError, match=r"width must be a multiple of heads"):
        load_vit(torch_bytes(timm_state(192)), heads=7)


@pytest.mark.parametrize(
    "layout", ["dino_ours_vit_small", "dino_vit_small", "build_transformer_vit_small_ics", "clustercontrast_vit_small"]
)
def test_released_files_need_no_flag_and_state_their_heads(layout):
    answers, line = known(torch_bytes(released_state_dict(layout)))
    assert answers["heads"][:2] == (6, "assumed") and "heads 6 (heads of 64 channels, as published)" in line
    assert answers["image_size"].value == (256, 128) and "16 x 8 patches" in line
    if layout.startswith("dino"):
        assert answers["mean"][:2] == ([0.485, 0.456, 0.406], "assumed") and "neck" not in answers
    else:
        assert (answers["mean"].value[0], answers["mean"].how, answers["neck"].how) == (0.5, "assumed", "assumed")


def test_our_own_file_says_it_all_and_may_not_be_contradicted(tmp_path):
    save_model(ReidModel(build_vit(SMALL)), {"mean": [0.5] * 3, "std": [0.25] * 3, "neck": "after"}, tmp_path / "m.safetensors")
    answers, line = known(tmp_path / "m.safetensors")
    assert "assumed" not in line and {name: answers[name].how for name in ("heads", "mean", "neck", "stride")} == dict.fromkeys(
        ("heads", "mean", "neck", "stride"), "said"
    )
    for told in ({"heads": 4}, {"stride": 4}, {"image_size": [64, 16]}, {"gem_pooling": True}):
        with pytest.raises(ValueError, match=f"m.safetensors says {next(iter(told))} .* was given: leave it out"):
            load_vit(tmp_path / "m.safetensors", given=LoadConfig(**told))
    assert load_vit(tmp_path / "m.safetensors", given=LoadConfig(heads=3)).config == SMALL
    answers, line = known(tmp_path / "m.safetensors", given=LoadConfig(neck="before", mean=[0.1, 0.2, 0.3]))
    assert answers["neck"] == ("before", "given", "the file says after") and answers["mean"].value == [0.1, 0.2, 0.3]


def test_overlapping_patches_are_given_or_refused(tmp_path):
    vit = build_vit(dataclasses.replace(SMALL, stem="patch", width=64, heads=1, stride=6, image_size=(64, 28)))  # 10 x 4
    tensors = {"base." + name: value for name, value in vit.state_dict().items()}
    data = torch_bytes(tensors | {"base.fc.weight": torch.ones(3, 64)})
    with pytest.raises(ValueError, match=r"40 patches fit no grid.*image_size and stride"):
        load_vit(data, heads=1)
    given = LoadConfig(heads=1, image_size=[64, 28], stride=6)
    answers, line = known(data, given=given)
    assert answers["stride"][:2] == (6, "given") and "10 x 4 patches" in line
    assert torch.equal(load_vit(data, given=given)(images(64, 28)), vit.eval()(images(64, 28)))
    with pytest.raises(ValueError, match=r"position embeddings of 40 patches, and images of \(64, 64\) with stride 6 give 100"):
        load_vit(data, given=LoadConfig(heads=1, image_size=[64, 64], stride=6))
    with pytest.raises(Unsaid, match=r"40 patches at stride 6 and does not say of which image size\. Give load\.image_size="):
        load_vit(data, given=LoadConfig(heads=1, stride=6))  # not: another grid that happens to fit


def test_gem_pooling_is_given(tmp_path):
    vit = build_vit(dataclasses.replace(SMALL, width=64, heads=1, gem_pooling=True)).eval()
    data = torch_bytes(released_checkpoint(vit.state_dict(), "dino"))
    assert torch.equal(load_vit(data, given=LoadConfig(gem_pooling=True))(images(32, 16)), vit(images(32, 16)))
    assert not torch.allclose(load_vit(data)(images(32, 16)), vit(images(32, 16)), atol=1e-2)


def test_cameras_of_a_released_file_are_given_and_those_of_ours_said(tmp_path):
    model = ReidModel(build_vit(dataclasses.replace(SMALL, width=64, heads=1, num_cameras=2)), 3).eval()
    data = torch_bytes(released_checkpoint(model.state_dict(), "reid"))
    answers, _ = known(data)
    assert "cameras" not in answers and answers["camera_weight"][:2] == (3.0, "assumed")
    answers, _ = known(data, given=LoadConfig(cameras=[4, 7], camera_weight=1.5))
    assert answers["cameras"][:2] == ([4, 7], "given")
    again = load_reid(data, given=LoadConfig(camera_weight=1.5))
    rows = torch.tensor([0, 1])
    assert again.backbone.config.camera_weight == 1.5
    assert not torch.allclose(again(images(32, 16), rows).before, model(images(32, 16), rows).before, atol=1e-3)
    torch.testing.assert_close(load_reid(data)(images(32, 16), rows).before, model(images(32, 16), rows).before)
    with pytest.raises(ValueError, match="embeddings of 2 cameras, and 3 camera numbers are given"):
        known(data, given=LoadConfig(cameras=[1, 2, 3]))
    ours = model_bytes(model.backbone, {"cameras": [4, 7]})
    assert known(ours, given=LoadConfig(cameras=[4, 7]))[0]["cameras"][:2] == ([4, 7], "said")
    with pytest.raises(ValueError, match=r"says cameras \[4, 7\], and cameras=\[7, 4\] was given: leave it out"):
        known(ours, given=LoadConfig(cameras=[7, 4]))
    with pytest.raises(ValueError, match=r"no camera embeddings, so cameras=\[1\] means nothing"):
        known(model_bytes(build_vit(SMALL)), given=LoadConfig(cameras=[1]))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"heads": -1}, "heads must be 0"),
        ({"mean": [0.5]}, "mean must be three numbers"),
        ({"std": [0, 1, 1]}, "std must be above 0"),
        ({"mean": [124, 116, 104]}, "mean must be three numbers in"),
        ({"neck": "middle"}, "neck must be one of before, after"),
        ({"image_size": [256]}, "image_size must be"),
        ({"cameras": [1, 1]}, "cameras must be different numbers"),
    ],
)
def test_what_cannot_be_is_refused(told, words):
    with pytest.raises(ValueError, match=words):
        LoadConfig(**told)


def test_quantized_weights_are_no_features():
    tensors = build_vit(dataclasses.replace(SMALL, width=64, heads=1)).state_dict()
    tensors["blocks.0.mlp.fc1.weight"] = torch.ones(256, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"is quantized: blocks.0.mlp.fc1.weight .*int8"):
        load_vit(safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}))


def test_a_header_with_broken_numbers_is_named(tmp_path):
    tensors = {name: value.contiguous() for name, value in build_vit(SMALL).state_dict().items()}
    header = {"vit": json.dumps(dataclasses.asdict(SMALL)), "mean": "half"}
    safetensors.torch.save_file(tensors, tmp_path / "odd.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"odd.safetensors has a mean or std in its header that is no list"):
        load_vit(tmp_path / "odd.safetensors")
