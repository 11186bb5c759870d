"""Camera embeddings in the programs: learned in fine-tuning, stored, evaluated with the same numbers, exported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from platform.engine.config.compose import load_config
from platform.engine.data.image_set import ImageSet
from platform.engine.errors import UserError
from platform.engine.finetune.camera_plan import plan_cameras
from platform.engine.inference.actors import FeatureActor
from platform.engine.inference.evaluation import EvaluateConfig, evaluate_features
from platform.engine.inference.models import load_model
from platform.engine.storage.location import StorageConfig, open_storage
from platform.evaluate import EvaluateProgramConfig
from platform.evaluate import main as evaluate
from platform.export import ExportConfig
from platform.export import main as export
from platform.finetune import check_inputs, finetune, initial_model, load_init, main, with_micro_batches
from platform.pretrain import PretrainConfig
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, save_model, weights_hash
from tests.fixtures_runs import finetune_config
from tests.tiny import TINY_VIT

STORAGE = StorageConfig()


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """A process group with this process alone, for the training loop. All tests share it, because DeepSpeed keeps the first."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
            patch.setenv(name, value)
        rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def judged(model: str, data) -> float:
    """The mAP of features from the actor that platform.evaluate and platform.cluster use."""
    actor, features, sets = FeatureActor(model, STORAGE, 1), [], []
    for split in ("query", "gallery"):
        images = ImageSet(data, [split], (64, 32))
        batch = {"image": images.batch(np.arange(len(images))).numpy(), "camid": images.camids}
        features.append(torch.from_numpy(actor(batch | dict.fromkeys(("key", "split", "file", "problem")))["feature"]))
        sets.append(images)
    return evaluate_features(*sets, *features, EvaluateConfig())["mAP"]


def test_fine_tuning_learns_cameras_and_evaluation_uses_them(tmp_path, one_worker, tiny_backbone, tiny_labeled, capsys):
    output = tmp_path / "run"
    config = finetune_config(tiny_labeled, output, f"checkpoint={tiny_backbone}", "model.num_cameras=3", "supervised.epochs=2")
    check_inputs(config)
    said = capsys.readouterr().out
    assert "new embeddings of 3 cameras" in said and "a model of ours" in said and "augment.mean" in said
    finetune(with_micro_batches(config, open_storage(config.output)))
    summary = json.loads((output / "summary.json").read_text())
    assert summary["cameras"] == [1, 2, 3] and summary["loaded"]["heads"] == 2
    after = load_reid(output / "model.safetensors").backbone
    init = load_init(config)
    before = initial_model(config, init, plan_cameras(config, init)).backbone
    assert torch.equal(before.blocks[0].attn.qkv.weight, init.backbone.blocks[0].attn.qkv.weight)
    assert (after.camera_embed - before.camera_embed).abs().amax(dim=(1, 2)).min() > 0  # every embedding has changed
    # Evaluation of the stored model gives what fine-tuning reported.
    assert judged(str(output), tiny_labeled) == pytest.approx(summary["mAP"], abs=1e-6)
    export(load_config(ExportConfig, "export", [f"checkpoint={output}", f"output={tmp_path}/out"]))
    again = load_model(str(tmp_path / "out/safetensors/model.safetensors"), STORAGE)
    assert list(again.cameras) == [1, 2, 3] and weights_hash(again.reid).startswith(summary["weights"])
    assert json.loads(again.metadata["loaded"])["heads"] == 2
    assert judged(str(tmp_path / "out/released/reid.pth"), tiny_labeled) == pytest.approx(summary["mAP"], abs=1e-6)
    assert "one embedding for each of 1, 2, 3" in (tmp_path / "out/released/README.md").read_text()


def test_uda_gives_each_set_its_rows(tmp_path, one_worker, tiny_backbone, tiny_labeled, tiny_source):
    output = tmp_path / "run"
    config = finetune_config(
        tiny_labeled,
        output,
        f"checkpoint={tiny_backbone}",
        "model.num_cameras=6",
        "setting=uda",
        f"source_set={tiny_source.uri}",
        "supervised.epochs=1",
        "unsupervised.epochs=1",
    )
    finetune(with_micro_batches(config, open_storage(config.output)))
    summary = json.loads((output / "summary.json").read_text())
    assert summary["cameras"] == [None, None, None, 1, 2, 3]
    assert judged(str(output), tiny_labeled) == pytest.approx(summary["mAP"], abs=1e-6)
    export(load_config(ExportConfig, "export", [f"checkpoint={output}", f"output={tmp_path}/out"]))
    assert judged(str(tmp_path / "out/released/cluster_contrast.pth"), tiny_labeled) == pytest.approx(summary["mAP"], abs=1e-6)


def test_unknown_cameras_are_refused_before_work(tmp_path, tiny_backbone, tiny_labeled):
    with pytest.raises(UserError, match=r"model.num_cameras must be the number of cameras of the training images, 3: got 2"):
        main(finetune_config(tiny_labeled, tmp_path / "a", f"checkpoint={tiny_backbone}", "model.num_cameras=2"))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"model.num_cameras must be 0 in pre-training"):
        PretrainConfig(model=replace(VitConfig(), num_cameras=2))


@pytest.mark.slow  # a pass more; test_camera_rows has what it computes
def test_evaluation_with_cameras_through_the_pool(tmp_path, ray_session, tiny_labeled):
    save_model(build_vit(replace(TINY_VIT, num_cameras=3), seed=1), {"cameras": [3, 1, 2]}, tmp_path / "backbone.safetensors")
    options = [f"checkpoints=[{tmp_path}]", f"test_sets=[{tiny_labeled.uri}]", "pool.actors=1"]
    (row,) = evaluate(load_config(EvaluateProgramConfig, "evaluate", options))
    assert row["mAP"] == pytest.approx(judged(str(tmp_path), tiny_labeled), abs=1e-6)
    assert row["loaded"]["cameras"] == [3, 1, 2]
