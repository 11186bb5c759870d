"""Run folders: created, continued, complete, refused."""

import json
from dataclasses import dataclass, field, replace

import pytest

from platform.engine.config.compose import load_config
from platform.engine.errors import UserError
from platform.engine.runs.run_folder import environment, open_run
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.storage.location import StorageConfig
from platform.engine.train.scaling import ScalingConfig


@dataclass(kw_only=True)
class InnerConfig:
    size: tuple[int, int] = (4, 2)
    rate: float = 0.5


@dataclass(kw_only=True)
class OuterConfig:
    output: str = ""
    inner: InnerConfig = field(default_factory=InnerConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """(output, storage configuration), on this machine and on S3."""
    if request.param == "local":
        return str(tmp_path / "run"), StorageConfig()
    server = request.getfixturevalue("s3")
    return f"{server.uri}/run", StorageConfig(endpoint_url=server.endpoint_url)


def test_new_continued_complete(place):
    output, storage = place
    run = open_run("pretrain", output, OuterConfig(output=output), storage)
    stored = (run.location / "config.json").read_json()
    assert stored["program"] == "pretrain" and stored["config"]["inner"] == {"size": [4, 2], "rate": 0.5}
    assert stored["environment"] == environment()
    assert run.summary is None
    again = open_run("pretrain", output, OuterConfig(output=output), storage)
    assert again == run and again.summary is None
    again.finish({"mAP": 0.5})
    assert run.summary == {"program": "pretrain", "environment": environment(), "mAP": 0.5}


def test_another_configuration_is_refused_with_the_differences(place):
    output, storage = place
    open_run("pretrain", output, OuterConfig(), storage)
    changed = OuterConfig(inner=InnerConfig(size=(8, 2), rate=0.25))
    with pytest.raises(
        UserError,
        match=r"(?s)another configuration:\n  inner\.rate: 0\.5 -> 0\.25\n"
        r"  inner\.size: \[4, 2\] -> \[8, 2\]\nChoose another output",
    ):
        open_run("pretrain", output, changed, storage)


def test_the_configuration_of_a_run_that_has_not_begun_is_compared_but_not_stored(place):
    output, storage = place
    changed = OuterConfig(inner=InnerConfig(rate=0.25))
    run = open_run("pretrain", output, changed, storage, begin=False)
    assert not (run.location / "config.json").exists() and run.settings == {}
    open_run("pretrain", output, OuterConfig(), storage)
    with pytest.raises(UserError, match=r"inner\.rate: 0\.5 -> 0\.25"):
        open_run("pretrain", output, changed, storage, begin=False)


def test_how_a_run_is_carried_out_may_change_at_any_level(tmp_path):
    def start(*overrides: str) -> None:
        config = load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", *overrides])
        open_run("pipeline", config.output, config, config.storage)

    start()
    start("pretrain.scaling.workers=2", "finetune.scaling=gpus8", "pretrain.checkpoint.keep=5", "pretrain.tracking.every_steps=3")
    start("pretrain.probe.uri=runs/another", "pretrain.probe.split=train", "pretrain.probe.every_steps=7")
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  pretrain\.length\.samples: 0 -> 9\n"):
        start("pretrain.length.samples=9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"architectures": ["ViT"]}', r"it has no 'config' \(it has: architectures\): .*choose another output"),
        ('{"config": "vit"}', r"its 'config' is of type str"),
        ("[]", r"holds a list where an object with 'config' belongs"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json.*{message}"):
        open_run("pretrain", str(tmp_path), OuterConfig(), StorageConfig())
    assert (tmp_path / "config.json").read_text() == content


def test_a_setting_that_came_later_has_its_default_in_older_runs(tmp_path):
    """An unfinished run of an earlier version continues, unless a new setting is used."""
    open_run("pretrain", str(tmp_path), OuterConfig(), StorageConfig())
    stored = json.loads((tmp_path / "config.json").read_text())
    for older in ({"size": [4, 2]}, {"rate": 0.5}):
        (tmp_path / "config.json").write_text(json.dumps(stored | {"config": stored["config"] | {"inner": older}}))
        open_run("pretrain", str(tmp_path), OuterConfig(), StorageConfig())
    del stored["config"]["inner"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    open_run("pretrain", str(tmp_path), OuterConfig(), StorageConfig())
    with pytest.raises(UserError, match=r"inner\.rate: 0\.5 -> 0\.25\n"):
        open_run("pretrain", str(tmp_path), OuterConfig(inner=InnerConfig(rate=0.25)), StorageConfig())


def test_how_a_run_is_carried_out_may_change(tmp_path):
    config = OuterConfig(output="a/../run")
    open_run("pretrain", str(tmp_path), config, StorageConfig())
    open_run("pretrain", str(tmp_path), replace(config, output="run", scaling=ScalingConfig(workers=5)), StorageConfig())
    with pytest.raises(UserError, match=r"scaling\.workers: 1 -> 5"):
        open_run("pretrain", str(tmp_path), replace(config, scaling=ScalingConfig(workers=5)), StorageConfig(), volatile=())


def test_output_is_needed():
    with pytest.raises(UserError, match="output is empty"):
        open_run("pretrain", "", OuterConfig(), StorageConfig())


def test_environment_names_what_results_depend_on():
    found = environment()
    assert {"python", "code", "torch", "ray", "deepspeed", "timm"} <= found.keys()
    json.dumps(found)


def test_a_data_set_is_no_run_folder(tiny_shards):
    before = (tiny_shards / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a data set \(manifest.json\), no run: choose another output"):
        open_run("score", tiny_shards.uri, OuterConfig(), StorageConfig())
    assert (tiny_shards / "manifest.json").read_bytes() == before and not (tiny_shards / "config.json").exists()
