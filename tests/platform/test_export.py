"""Export from runs and files: every format works in the library it is for, and nothing is half-written."""

import json

import pytest
import timm
import torch
from torch.nn import functional as F

from platform.engine.config.compose import load_config, to_plain
from platform.engine.errors import UserError
from platform.engine.inference.models import load_model
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.storage.location import StorageConfig, open_storage
from platform.export import ExportConfig, main
from reidssl.models.exported import run_onnx
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, save_model, weights_hash

VIT = VitConfig(width=64, depth=2, heads=1, patch_size=16, image_size=(64, 32), stem="patch")


def config_of(source, output, *overrides) -> ExportConfig:
    return load_config(ExportConfig, "export", [f"checkpoint={source}", f"output={output}", *overrides])


@pytest.fixture
def run(tmp_path):
    """A fine-tuning run folder whose retrieval uses the feature after the neck."""
    model = ReidModel(build_vit(VIT, seed=1), num_classes=3).eval()
    with torch.no_grad():
        model.bottleneck.running_mean.uniform_(-1, 1)
        model.bottleneck.running_var.uniform_(0.5, 2)
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(model, {"neck": "after", "mean": [0.5] * 3, "std": [0.25] * 3, "setting": "usl"}, folder / "model.safetensors")
    given = ["setting=usl", f"checkpoint={tmp_path}/backbone", f"target_set={tmp_path}/private/market", "unsupervised.epochs=7"]
    given += ["supervised.epochs=9", "model.depth=3"]  # not read
    config = load_config(FinetuneConfig, "finetune", [*given, "scaling.workers=2", f"output={folder}"])
    (folder / "config.json").write_text(json.dumps({"program": "finetune", "config": to_plain(config)}))
    best = {"phase": 0, "epoch": 4, "mAP": 0.555, "rank1": 0.8}
    summary = {"mAP": 0.512, "rank1": 0.75, "weights": weights_hash(model)[:12], "best": best}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_all_formats(tmp_path, run, capsys):
    names = main(config_of(run, tmp_path / "out", "formats=[safetensors,timm,torch,onnx,released]"))
    assert names == [
        "onnx/README.md",
        "onnx/model.onnx",
        "released/README.md",
        "released/config.json",
        "released/dino.pth",
        "released/dino_teacher.pth",
        "released/reid.pth",
        "safetensors/README.md",
        "safetensors/config.json",
        "safetensors/model.safetensors",
        "timm/README.md",
        "timm/config.json",
        "timm/model.safetensors",
        "torch/README.md",
        "torch/config.json",
        "torch/hubconf.py",
        "torch/model.safetensors",
    ]
    assert all((tmp_path / "out" / name).is_file() for name in names)
    pixels = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    original = load_model(str(run), StorageConfig())
    with torch.inference_mode():
        expected = original.embed(pixels).cpu()
        ours = load_model(str(tmp_path / "out/safetensors/model.safetensors"), StorageConfig())
        assert ours.metadata["setting"] == "usl" and torch.equal(ours.embed(pixels).cpu(), expected)
        timms = timm.create_model(f"local-dir:{tmp_path}/out/timm", pretrained=True).eval()
        torch.testing.assert_close(F.normalize(timms((pixels / 255 - 0.5) / 0.25)), expected, atol=1e-5, rtol=0)
        hub = torch.hub.load(f"{tmp_path}/out/torch", "reid", source="local")
        torch.testing.assert_close(hub(pixels), expected, atol=1e-5, rtol=0)
    onnx = run_onnx((tmp_path / "out/onnx/model.onnx").read_bytes(), pixels.numpy())
    torch.testing.assert_close(torch.from_numpy(onnx), expected, atol=1e-4, rtol=0)
    released = load_model(str(tmp_path / "out/released/reid.pth"), StorageConfig())
    assert (released.neck, released.std) == ("after", [0.25] * 3) and not released.about.as_dict()["assumed"]
    again = load_reid(tmp_path / "out/released/reid.pth")
    assert weights_hash(again) == weights_hash(original.reid)
    card = (tmp_path / "out/timm/README.md").read_text()
    command = "`python -m platform.finetune setting=usl checkpoint=backbone target_set=market unsupervised.epochs=7`"
    for words in (
        command,
        "license: other",
        "library_name: timm",
        "64 x 32",
        "after the neck",
        "setting | usl",
        "mAP 51.2%, Rank-1 75.0%",
        "local-dir:",
    ):
        assert words in card
    assert "export:" in capsys.readouterr().out


def test_the_card_has_the_results_of_its_own_weights(tmp_path, run):
    """best.safetensors has those of its epoch; other weights in the folder have none."""

    def card_of(name: str) -> str:
        output = tmp_path / "out" / name
        main(config_of(run / name, output, "formats=[safetensors]"))
        return (output / "safetensors" / "README.md").read_text()

    other = ReidModel(build_vit(VIT, seed=2), num_classes=3)
    for name in ("best.safetensors", "later.safetensors"):
        save_model(other, {"neck": "after", "mean": [0.5] * 3, "std": [0.25] * 3}, run / name)
    assert "results on the target | mAP 51.2%, Rank-1 75.0% |" in card_of("model.safetensors")
    assert "results on the target | mAP 55.5%, Rank-1 80.0% |" in card_of("best.safetensors")
    assert "results on the target" not in card_of("later.safetensors")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"best": None}))  # left by an earlier run with keep_best
    assert "results on the target" not in card_of("best.safetensors")


def test_a_released_file_to_object_storage(tmp_path, s3):
    torch.save({"state_dict": {"module." + n: v for n, v in build_vit(VIT).state_dict().items()}}, tmp_path / "theirs.pth")
    storage = [f"storage.endpoint_url={s3.endpoint_url}"]
    assert main(config_of(tmp_path / "theirs.pth", f"{s3.uri}/out", *storage))
    found = {item.name for item in open_storage(f"{s3.uri}/out", StorageConfig(endpoint_url=s3.endpoint_url)).list()}
    assert found == {
        "safetensors/model.safetensors",
        "safetensors/README.md",
        "safetensors/config.json",
        "released/dino.pth",
        "released/dino_teacher.pth",
        "released/README.md",
        "released/config.json",
    }


def test_what_cannot_be_made_leaves_nothing(tmp_path, tiny_backbone):
    with pytest.raises(UserError, match=r"formats=timm: timm's vision transformer does not have the ics stem; export it as"):
        main(config_of(tiny_backbone, tmp_path / "out", "formats=[safetensors,timm]"))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_files_of_another_model_are_not_left_beside_the_new_ones(tmp_path, run, tiny_backbone):
    main(config_of(run, tmp_path / "out", "formats=[released]"))
    before = (tmp_path / "out/released/config.json").read_bytes()
    assert main(config_of(run, tmp_path / "out", "formats=[released]"))  # the same model again
    with pytest.raises(UserError, match=r"out/released has reid.pth of another export: choose another output"):
        main(config_of(tiny_backbone, tmp_path / "out", "formats=[released]"))
    assert (tmp_path / "out/released/config.json").read_bytes() == before


def test_bad_settings(tmp_path, tiny_backbone):
    with pytest.raises(UserError, match=r"formats must be one or more of safetensors, timm, torch, onnx, released: got tflite"):
        config_of(tiny_backbone, tmp_path, "formats=[tflite]")
    with pytest.raises(UserError, match="output is empty"):
        main(config_of(tiny_backbone, ""))
    with pytest.raises(UserError, match="there is no model at"):
        main(config_of(tmp_path / "nowhere", tmp_path / "out"))
