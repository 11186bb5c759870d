"""Camera embeddings through the programs: learned in fine-tuning, stored, evaluated with the same numbers, exported."""

import json
from dataclasses import replace

import pytest
import torch

from platform.engine.camera_plan import plan_cameras
from platform.engine.config import load_config
from platform.engine.errors import UserError
from platform.engine.models import load_model
from platform.engine.storage import StorageConfig
from platform.evaluate import EvaluateProgramConfig
from platform.evaluate import main as evaluate
from platform.export import ExportConfig
from platform.export import main as export
from platform.finetune import initial_model, load_init, main
from platform.pretrain import PretrainConfig
from reidssl.models.checkpoints import load_reid, weights_hash
from reidssl.models.vit import VitConfig
from tests.fixtures_runs import finetune_config


def test_fine_tuning_learns_cameras_and_evaluation_uses_them(tmp_path, ray_session, tiny_backbone, tiny_labelled, capsys):
    output = tmp_path / "run"
    config = finetune_config(tiny_labelled, output, f"init={tiny_backbone}", "model.num_cameras=3", "supervised.epochs=2")
    summary = main(config)
    said = capsys.readouterr().out
    assert "new embeddings of 3 cameras" in said and "a model of ours" in said and "augment.mean" in said
    assert summary["cameras"] == [1, 2, 3] and summary["checkpoint"]["heads"] == 2
    after = load_reid(output / "model.safetensors").backbone
    init = load_init(config)
    before = initial_model(config, init, plan_cameras(config, init)).backbone
    assert torch.equal(before.blocks[0].attn.qkv.weight, init.backbone.blocks[0].attn.qkv.weight)
    assert (after.camera_embed - before.camera_embed).abs().amax(dim=(1, 2)).min() > 0  # each camera's embedding has moved
    # Evaluation of the stored model gives what fine-tuning reported; other cameras would give something else.
    options = [f"models=[{output}]", f"test_sets=[{tiny_labelled.uri}]", "pool.actors=1"]
    (row,) = evaluate(load_config(EvaluateProgramConfig, "evaluate", options))
    assert row["mAP"] == pytest.approx(summary["mAP"], abs=1e-6) and row["checkpoint"]["cameras"] == [1, 2, 3]
    names = export(load_config(ExportConfig, "export", [f"input={output}", f"output={tmp_path}/out"]))
    assert "safetensors/model.safetensors" in names
    again = load_model(str(tmp_path / "out/safetensors/model.safetensors"), StorageConfig())
    assert list(again.cameras) == [1, 2, 3] and weights_hash(again.reid).startswith(summary["weights"])
    assert json.loads(again.metadata["checkpoint"])["heads"] == 2
    assert "one embedding for each of 1, 2, 3" in (tmp_path / "out/released/README.md").read_text()


def test_unknown_cameras_are_refused_before_work(tmp_path, tiny_backbone, tiny_labelled, tiny_shards):
    with pytest.raises(UserError, match=r"model.num_cameras must be the number of cameras of the training images, 3: got 2"):
        main(finetune_config(tiny_labelled, tmp_path / "a", f"init={tiny_backbone}", "model.num_cameras=2"))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"model.num_cameras must be 0 in pre-training"):
        PretrainConfig(model=replace(VitConfig(), num_cameras=2))
