"""Forward passes of extraction: precision, compilation and padding change no feature beyond rounding."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from platform.engine.inference.forward import PADDED_TO, Forward
from platform.engine.inference.models import load_model
from platform.engine.schemas.retrieval_settings import WORTH_COMPILING, PoolConfig
from platform.engine.storage.location import StorageConfig
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model

MODEL = VitConfig(width=32, depth=2, heads=2, image_size=(64, 32), stem_width=8)
WITH_CAMERAS = replace(MODEL, num_cameras=3)


@pytest.fixture
def backbone():
    return build_vit(WITH_CAMERAS).eval()


@pytest.fixture
def images():
    return torch.randn(7, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def test_fp32_is_the_model_itself(backbone, images):
    cameras = torch.arange(7) % 3
    with torch.inference_mode():
        assert torch.equal(Forward(backbone, "auto")(images, cameras), backbone(images, cameras))


def test_bf16_is_computed_in_bf16_and_close(backbone, images):
    cameras = torch.arange(7) % 3
    with torch.inference_mode():
        exact, half = backbone(images, cameras), Forward(backbone, "bf16")(images, cameras)
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)  # the pass was in another precision
    assert F.cosine_similarity(exact, half).min() > 0.999


def test_a_compiled_pass_has_one_graph_for_all_batches(backbone, images):
    """Smaller batches are padded: the compiler sees one shape, and the features of the real rows are those of the model."""
    shapes = []

    def counting(graph, inputs):
        shapes.append([tuple(one.shape) for one in inputs if getattr(one, "dim", int)() == 4 and one.shape[2] == 64])
        return graph.forward

    compiled = Forward(backbone)
    compiled.is_compiled = True
    backbone.compile(dynamic=False, backend=counting)
    cameras = torch.arange(7) % 3
    with torch.inference_mode():
        first = compiled(images, cameras)
        parts = torch.cat([compiled(images[:3], cameras[:3]), compiled(images[3:4], cameras[3:4])])
        for rows in (5, 6):  # a batch that grows a little needs no graph either
            growing = Forward(backbone)
            growing.is_compiled = True
            assert torch.allclose(growing(images[:rows], cameras[:rows]), first[:rows], atol=1e-5)
        backbone._compiled_call_impl = None
        plain = backbone(images, cameras)
    assert {shape for found in shapes for shape in found} == {(PADDED_TO, 3, 64, 32)}
    assert torch.allclose(first, plain, atol=1e-5) and torch.allclose(parts, plain[:4], atol=1e-5)


def test_a_model_with_a_neck_has_the_features_of_its_forward_pass(tmp_path, images):
    """`embed` leaves the classifier out, and gives what the whole model gives."""
    model = ReidModel(build_vit(MODEL), 5).eval()
    with torch.no_grad():
        model.bottleneck.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    for neck in ("before", "after"):
        save_model(model, {"neck": neck}, tmp_path / f"{neck}.safetensors")
        loaded = load_model(str(tmp_path / f"{neck}.safetensors"), StorageConfig())
        raw = (torch.rand(4, 3, 64, 32, generator=torch.Generator().manual_seed(3)) * 255).to(torch.uint8)
        with torch.inference_mode():
            normalized = (raw / 255 - torch.tensor(loaded.mean)[:, None, None]) / torch.tensor(loaded.std)[:, None, None]
            assert torch.allclose(loaded.embed(raw), model(normalized).embedding(neck), atol=1e-6)


def test_only_many_images_repay_the_compiler():
    assert PoolConfig().compiling(WORTH_COMPILING - 1) == "off"
    assert PoolConfig().compiling(WORTH_COMPILING) == "auto"
    assert PoolConfig(compile="on").compiling(1) == "on"


@pytest.mark.parametrize("setting", [{"precision": "fp16"}, {"compile": "yes"}])
def test_unknown_choices_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be one of"):
        PoolConfig(**setting)
