"""Every program that takes a checkpoint accepts the facts that its file lacks, refuses it without, and stores them."""

import pytest
import torch

from platform.cluster import ClusterProgramConfig
from platform.cluster import main as cluster
from platform.engine.config.compose import load_config
from platform.engine.errors import ConfigError, UserError
from platform.engine.inference.models import load_model
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import StorageConfig
from platform.engine.sweep.trials import planned
from platform.evaluate import EvaluateProgramConfig
from platform.evaluate import main as evaluate
from platform.export import ExportConfig
from platform.export import main as export
from platform.finetune import check_inputs
from platform.score import ScoreConfig
from platform.score import main as score
from reidssl.models.given import LoadConfig
from reidssl.models.vit import VitConfig, build_vit
from tests.fixtures_runs import finetune_config


@pytest.fixture
def bare(tmp_path):
    """A square ViT with timm's names and without a wrapper. The file does not say whether it has 4 heads or 2."""
    vit = build_vit(VitConfig(width=64, depth=1, heads=4, image_size=(64, 64), stem="patch"))
    torch.save(vit.state_dict(), tmp_path / "bare.pth")
    return tmp_path / "bare.pth"


UNSAID = r"bare.pth is a plain vision transformer of unknown origin.*Give {}.heads="


def test_every_program_refuses_to_guess(tmp_path, bare, tiny_labeled, tiny_backbone):
    out, test_sets = tmp_path / "out", f"test_sets=[{tiny_labeled.uri}]"
    calls = [
        ("load", lambda: check_inputs(finetune_config(tiny_labeled, out, f"checkpoint={bare}"))),
        ("load", lambda: evaluate(load_config(EvaluateProgramConfig, "evaluate", [f"checkpoints=[{bare}]", test_sets]))),
        (
            "load",
            lambda: cluster(
                load_config(ClusterProgramConfig, "cluster", [f"checkpoint={bare}", f"data={tiny_labeled.uri}", f"output={out}"])
            ),
        ),
        ("load", lambda: export(load_config(ExportConfig, "export", [f"checkpoint={bare}", f"output={out}"]))),
        (
            "load",
            lambda: score(
                load_config(
                    ScoreConfig,
                    "score",
                    [f"source_proxy={bare}", f"target_proxy={tiny_backbone}", f"output={out}", f"data={tiny_labeled.uri}"],
                )
            ),
        ),
        (
            "load_target",
            lambda: score(
                load_config(
                    ScoreConfig,
                    "score",
                    [f"source_proxy={tiny_backbone}", f"target_proxy={bare}", f"output={out}", f"data={tiny_labeled.uri}"],
                )
            ),
        ),
    ]
    for section, call in calls:
        with pytest.raises(UserError, match=UNSAID.format(section)):
            call()
    assert not out.exists()


def test_what_is_given_is_stated_used_and_stored(tmp_path, bare, ray_session, tiny_labeled, capsys):
    given = ["load.heads=4", "load.mean=[0.5,0.5,0.5]", "load.std=[0.25,0.25,0.25]"]
    export(load_config(ExportConfig, "export", [f"checkpoint={bare}", f"output={tmp_path}/out", *given]))
    said = capsys.readouterr().out
    assert "given: heads 4, mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]; assumed: image_size" in said
    again = load_model(str(tmp_path / "out/safetensors/model.safetensors"), StorageConfig())
    assert again.backbone.config.heads == 4 and (again.mean, again.std) == ([0.5] * 3, [0.25] * 3)
    assert not again.about.as_dict()["assumed"]
    released = load_model(str(tmp_path / "out/released/dino_teacher.pth"), StorageConfig())  # the layout alone would mean 1 head
    assert released.backbone.config.heads == 4 and released.std == [0.25] * 3
    rows = []
    for model, options in ((bare, given), (tmp_path / "out/safetensors/model.safetensors", [])):
        rows += evaluate(
            load_config(
                EvaluateProgramConfig,
                "evaluate",
                [f"checkpoints=[{model}]", f"test_sets=[{tiny_labeled.uri}]", "pool.actors=1", *options],
            )
        )
    assert rows[0]["rankings"] == rows[1]["rankings"] and rows[0]["mAP"] == rows[1]["mAP"]
    images = torch.randint(0, 256, (4, 3, 64, 32), dtype=torch.uint8)
    four, two = (load_model(str(bare), StorageConfig(), LoadConfig(heads=heads)).embed(images) for heads in (4, 2))
    assert not torch.allclose(four, two, atol=1e-4)
    assert rows[0]["loaded"]["given"] == ["heads", "mean", "std"] and rows[0]["loaded"]["heads"] == 4


def test_fine_tuning_and_sweeps_take_it(tmp_path, bare, tiny_labeled, capsys):
    check_inputs(finetune_config(tiny_labeled, tmp_path / "out", f"checkpoint={bare}", "load.heads=4"))
    assert "given: heads 4" in capsys.readouterr().out
    config = load_config(
        TuneConfig, "tune", ["finetune.checkpoint=x", "finetune.augment.image_size=[64,32]", "finetune.load.heads=4"]
    )
    assert planned(config) and config.finetune.load.heads == 4
    with pytest.raises(ConfigError, match=r"load.mean must be empty in fine-tuning, .*set augment.mean"):
        finetune_config(tiny_labeled, tmp_path, f"checkpoint={bare}", "load.mean=[0.5,0.5,0.5]")
    with pytest.raises(ConfigError, match=r"load.heads must be 0 .*got -1"):
        finetune_config(tiny_labeled, tmp_path, f"checkpoint={bare}", "load.heads=-1")
