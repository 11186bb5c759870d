"""A model is found by its run and used as it was trained."""

import pytest
import torch
from torch.nn import functional as F

from platform.engine.data.image_set import ImageSet
from platform.engine.errors import UserError
from platform.engine.inference.models import BackboneOverrides, load_model, model_file
from platform.engine.storage.location import StorageConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import released_checkpoint
from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model
from tests.fixtures_runs import embed_all
from tests.tiny import TINY_VIT

STORAGE = StorageConfig()


@pytest.fixture
def reid(tmp_path):
    """A re-ID model whose neck changes the features, saved for retrieval with the feature after the neck."""
    model = ReidModel(build_vit(TINY_VIT, seed=1), num_classes=3).eval()
    with torch.no_grad():
        model.bottleneck.running_mean.uniform_(-1, 1)
        model.bottleneck.running_var.uniform_(0.5, 2)
    save_model(model, {"kind": "reid", "neck": "after", "mean": [0.5] * 3, "std": [0.25] * 3}, tmp_path / "model.safetensors")
    return model


def test_a_run_is_found_by_its_folder_and_by_its_file(tmp_path, tiny_backbone, reid):
    assert model_file(str(tiny_backbone), STORAGE).name == "backbone.safetensors"
    assert model_file(str(tiny_backbone / "backbone.safetensors"), STORAGE).name == "backbone.safetensors"
    (tmp_path / "backbone.safetensors").write_bytes((tiny_backbone / "backbone.safetensors").read_bytes())
    assert model_file(str(tmp_path), STORAGE).name == "model.safetensors"  # the fine-tuned model rather than the backbone


def test_nothing_there_says_what_was_looked_for(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"neither model.safetensors nor backbone.safetensors. Name a finished run"):
            load_model(str(path), STORAGE)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b"PK\x03\x04 torn"])
def test_broken_files_name_themselves(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors"):
        load_model(str(tmp_path), STORAGE)


def test_images_go_in_as_they_did_in_training(tmp_path, reid):
    loaded = load_model(str(tmp_path), STORAGE)
    assert (loaded.neck, loaded.mean, loaded.std, loaded.image_size) == ("after", [0.5] * 3, [0.25] * 3, (64, 32))
    images = torch.randint(0, 256, (5, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = reid((images.float() / 255 - 0.5) / 0.25)
    assert torch.allclose(loaded.embed(images), F.normalize(output.after, dim=1), atol=1e-5)
    assert not torch.allclose(loaded.embed(images), F.normalize(output.before, dim=1), atol=1e-2)
    assert not loaded.backbone.training and loaded.backbone is loaded.reid.backbone


@pytest.mark.parametrize(("layout", "neck", "mean"), [("reid", "before", 0.5), ("cluster_contrast", "after", 0.5)])
def test_released_models_are_used_as_their_authors_do(tmp_path, reid, layout, neck, mean):
    """Side of the neck and normalization are those of the published code, because the files lack them."""
    torch.save(released_checkpoint(reid.state_dict(), layout), tmp_path / "released.pth")
    loaded = load_model(str(tmp_path / "released.pth"), STORAGE, heads=2)
    assert (loaded.neck, loaded.mean[0], loaded.image_size) == (neck, mean, (64, 32)) and loaded.reid is not None
    with torch.no_grad():
        expected = reid(torch.zeros(1, 3, 64, 32)).embedding(neck)
        assert torch.allclose(loaded.reid(torch.zeros(1, 3, 64, 32)).embedding(neck), expected, atol=1e-6)


def test_what_was_loaded_is_reported(tmp_path, reid):
    torch.save(released_checkpoint(reid.state_dict(), "dino_teacher"), tmp_path / "released.pth")
    report = load_model(str(tmp_path / "released.pth"), STORAGE, heads=2, image_size=(96, 32)).report
    assert report.grids == ((4, 2), (6, 2)) and not report.skipped and not report.missing
    with pytest.raises(UserError, match=r"released.pth does not fit this backbone .* missing"):
        load_model(str(tmp_path / "released.pth"), STORAGE, heads=2, depth=3)


def test_a_backbone_alone_is_used_as_it_was_pre_trained(tiny_backbone):
    loaded = load_model(str(tiny_backbone), STORAGE)
    assert loaded.reid is None and loaded.neck == "before" and loaded.mean == [0.485, 0.456, 0.406]
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loaded.mean, loaded.std))
    with torch.no_grad():
        expected = F.normalize(loaded.backbone((images / 255 - mean) / std), dim=1)
    assert torch.allclose(loaded.embed(images), expected, atol=1e-5)


def test_features_are_in_order_whatever_the_batch(tiny_backbone, tiny_labeled):
    loaded, images = load_model(str(tiny_backbone), STORAGE), ImageSet(tiny_labeled, ["query"], (64, 32))
    whole = embed_all(loaded, images)
    assert whole.shape == (18, 32) and torch.allclose(whole.norm(dim=1), torch.ones(18), atol=1e-5)
    assert torch.allclose(embed_all(loaded, images, batch=5), whole, atol=1e-5)
    assert torch.allclose(loaded.embed(images.batch(torch.tensor([7]).numpy())), whole[7:8], atol=1e-5)


def test_the_backbone_can_be_loaded_with_changes(tiny_backbone):
    loaded = load_model(str(tiny_backbone), STORAGE, drop_path=0.2, image_size=(96, 32))
    assert loaded.backbone.config.drop_path == 0.2 and loaded.image_size == (96, 32)
    assert loaded.embed(torch.zeros(1, 3, 96, 32, dtype=torch.uint8)).shape == (1, 32)


def test_changes_keep_the_weights_and_say_what_was_resized(tiny_backbone):
    plain = load_model(str(tiny_backbone), STORAGE)
    changes = BackboneOverrides(stride=8, gem_pooling=True).as_dict()
    changed = load_model(str(tiny_backbone), STORAGE, **changes)
    assert changed.backbone.config.grid(64, 32) == (7, 3) and "resized from 4 x 2 to 7 x 3" in str(changed.report)
    assert torch.equal(changed.backbone.blocks[0].attn.qkv.weight, plain.backbone.blocks[0].attn.qkv.weight)
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(changed.embed(images), plain.embed(images), atol=1e-3)
    assert BackboneOverrides().as_dict() == {}
