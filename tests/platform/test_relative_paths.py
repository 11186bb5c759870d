"""Relative paths from any folder, with workers whose current folders differ."""

from pathlib import Path

from platform.engine.config.compose import load_config, to_plain
from platform.engine.schemas import schema_of
from platform.finetune import main as finetune
from platform.ingest import main as ingest
from platform.pretrain import main as pretrain
from tests.tiny import FINETUNE, PRETRAIN

TINY_PEOPLE = [
    "raw.kind=synthetic",
    "raw.part=target",
    "raw.synthetic.image_size=[64,32]",
    "raw.synthetic.target_identities=12",
    "raw.synthetic.target_cameras=3",
    "raw.synthetic.cameras_per_identity=3",
    "raw.synthetic.images_per_camera=2",
]
TINY_PRETRAIN = [*PRETRAIN, "model.width=32", "length.epochs=1", "scaling.threads=1", "scaling.max_failures=0"]
TINY_FINETUNE = [*FINETUNE, "supervised.epochs=1"]


def composed(program: str, *overrides: str):
    return load_config(schema_of(program), program, overrides)


def test_from_images_to_a_model_with_relative_paths(tmp_path, ray_session, monkeypatch, capsys):
    """`data=demo` and the folders of the README are below the user's folder and nowhere else."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ingest(composed("ingest", *TINY_PEOPLE, "output=runs/demo/data/pretrain"))
    seen = pretrain(
        composed(
            "pretrain",
            "data=demo",
            "output=out/epoch=1",
            "probe.uri=runs/demo/data/pretrain",
            "tracking.audit=out/audit",
            *TINY_PRETRAIN,
        )
    )
    assert seen["samples_seen"] == 64 and 0 <= seen["probe"]["probe_mAP"] <= 1
    tuned = finetune(
        composed(
            "finetune",
            "checkpoint=out/epoch=1",
            "target_set=./runs/demo/data/pretrain",
            "output=out/r",
            "tracking.tensorboard=out/boards",
            *TINY_FINETUNE,
        )
    )
    here = tmp_path / "here"
    assert tuned["checkpoint"] == str(here / "out/epoch=1") and tuned["target_set"] == str(here / "runs/demo/data/pretrain")
    for name in ("out/epoch=1/backbone.safetensors", "out/epoch=1/checkpoints", "out/r/model.safetensors", "out/r/summary.json"):
        assert (here / name).exists(), name
    assert list((here / "out/boards").glob("events*")) and len(list((here / "out/audit").iterdir())) == 8

    monkeypatch.chdir(tmp_path / "there")  # the same paths from another folder
    again = composed(
        "finetune",
        "checkpoint=../here/out/epoch=1",
        f"target_set=file://{here}/runs/demo/data/pretrain",
        "output=../here/out/r",
        "tracking.tensorboard=../here/out/boards",
        *TINY_FINETUNE,
    )
    capsys.readouterr()
    assert finetune(again) == tuned and "is complete already" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == [] and "runs/demo" in str(to_plain(again))
