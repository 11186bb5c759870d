"""Vision transformers of other libraries, built by timm (some with renamed tensors) and read as files: same features."""

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from reidssl.models.weights import Unsaid, load_vit, read_checkpoint
from tests.reference.fill_weights import images


def small(**options) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 7}
    return VisionTransformer(**{**settings, **options}).eval()


def dinov2_hub(name: str) -> str:
    return name


def dinov2_chunked(name: str) -> str:
    """A state dict as the FSDP training of DINOv2 saves it: blocks in chunks, the backbone inside the teacher."""
    parts = name.split(".")
    return "backbone." + (f"blocks.{parts[1]}.{'.'.join(parts[1:])}" if parts[0] == "blocks" else name)


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timm_file(suffix, tmp_path):
    """timm's own file, including the classifier, in both formats."""
    model = small()
    path = tmp_path / f"model.{suffix}"
    (torch.save if suffix == "pth" else safetensors.torch.save_file)(model.state_dict(), path)
    with pytest.raises(Unsaid, match=r"plain vision transformer of unknown origin, width 128.*Give load.heads=2 or load.heads=4"):
        load_vit(path)
    vit = load_vit(path, heads=2)
    assert vit.config.image_size == (64, 64) and vit.config.heads == 2
    torch.testing.assert_close(vit(images(64, 64)), model.forward_features(images(64, 64))[:, 0], atol=1e-5, rtol=0)
    assert load_vit(path, heads=2, image_size=(256, 128))(images()).shape == (2, 128)


@torch.no_grad()
def test_torch_hub_dino_is_timm_vit_small(tmp_path):
    """dino_deitsmall16_pretrain.pth has the names and shapes of timm's ViT-S/16 without classifier; its name identifies it."""
    model, reports = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval(), []
    torch.save(model.state_dict(), tmp_path / "dino_deitsmall16_pretrain.pth")
    vit = load_vit(tmp_path / "dino_deitsmall16_pretrain.pth", on_load=reports.append)
    assert "by its published file name" in str(reports[0]) and "assumed: heads 6" in str(reports[0])
    assert (vit.config.width, vit.config.heads, vit.config.image_size, vit.config.stem) == (384, 6, (224, 224), "patch")
    torch.testing.assert_close(vit(images(224, 224)), model(images(224, 224)), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("rename", [dinov2_hub, dinov2_chunked])
def test_dinov2(rename, tmp_path):
    """DINOv2 has layer scale, patches of 14 and a token for masked patches; image sizes are multiples of 14."""
    model = small(img_size=56, patch_size=14, init_values=0.3, num_classes=0)
    for block in model.blocks:  # a different factor for each channel
        torch.nn.init.uniform_(block.ls1.gamma, 0.1, 2)
        torch.nn.init.uniform_(block.ls2.gamma, 0.1, 2)
    tensors = {rename(name): value for name, value in model.state_dict().items()}
    tensors[rename("mask_token")] = torch.zeros(1, 128)
    torch.save({"teacher": tensors} if rename is dinov2_chunked else tensors, tmp_path / "dinov2.pth")
    reports = []
    vit = load_vit(tmp_path / "dinov2.pth", on_load=reports.append)
    assert reports[0].skipped == ["mask_token"] and not reports[0].missing and vit.config.layer_scale > 0
    torch.testing.assert_close(vit(images(56, 56)), model(images(56, 56)), atol=1e-5, rtol=0)
    tall = load_vit(tmp_path / "dinov2.pth", image_size=(252, 126), on_load=reports.append)
    assert reports[1].grids == ((4, 4), (18, 9)) and tall(images(252, 126)).shape == (2, 128)
    with pytest.raises(ValueError, match=r"image_size does not fit: .*256 x 128.*multiple of 14"):
        load_vit(tmp_path / "dinov2.pth", image_size=(256, 128))


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"qkv_bias": False}, {"class_token": False, "global_pool": "avg"}])
def test_relatives_that_are_something_else_are_refused(options):
    """Mean pooling with its own norm, no query biases, or no class token make a similar but different model."""
    with pytest.raises(ValueError, match=r"does not fit this backbone|no vision transformer that we know"):
        load_vit(safetensors.torch.save(small(**options).state_dict()), heads=2)


def test_layout_of_a_bare_vit():
    assert read_checkpoint(safetensors.torch.save(small().state_dict())).layout == "dino"
