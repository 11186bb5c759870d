"""Configuration: composed values, refusals and their messages."""

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

from platform.__main__ import programs
from platform.engine.config.compose import CONFIG_FOLDER, load_config, to_dataclass, to_plain
from platform.engine.config.groups import experiments_of
from platform.engine.errors import ConfigError
from platform.engine.schemas import SCHEMAS, schema_of
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.schemas.pretrain_settings import PretrainConfig

ROOT = Path(__file__).resolve().parents[4]
EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))


# ---- composing


def test_defaults_groups_and_overrides():
    config = load_config(
        PretrainConfig,
        "pretrain",
        ["model=vit_base", "stream.micro_batch=16", "deepspeed=zero3", "clip.norm=1.5", "output=s3://bucket/x"],
    )
    assert (config.model.width, config.model.stem) == (768, "patch")
    assert config.stream.micro_batch == 16 and config.deepspeed.zero_stage == 3 and config.clip.norm == 1.5
    assert config.output == "s3://bucket/x"
    assert config.augment.global_size == config.model.image_size == (256, 128)  # an interpolation in the file


def test_tuples_are_tuples_at_every_depth():
    config = load_config(PretrainConfig, "pretrain", ["model.image_size=[64,32]", "augment.local_scale=[0.1,0.3]"])
    assert config.model.image_size == (64, 32) and isinstance(config.model.image_size, tuple)
    assert config.augment.global_size == (64, 32) and isinstance(config.augment.global_size, tuple)
    assert config.augment.local_scale == (0.1, 0.3) and isinstance(config.augment.mean, list)


def test_nothing_leaks_from_one_composition_to_the_next():
    before = load_config(PretrainConfig, "pretrain")
    load_config(FinetuneConfig, "finetune", ["seed=5"])
    load_config(PretrainConfig, "pretrain", ["model=vit_base", "seed=9"])
    assert load_config(PretrainConfig, "pretrain") == before


def test_plain_and_back():
    config = load_config(PretrainConfig, "pretrain", ["model.image_size=[64,32]"])
    plain = to_plain(config)
    assert plain["model"]["image_size"] == [64, 32]
    assert to_dataclass(PretrainConfig, plain) == config


def test_the_schemas_are_those_of_the_programs():
    assert sorted(SCHEMAS) == sorted(programs())
    for program in SCHEMAS:
        assert get_type_hints(importlib.import_module(f"platform.{program}").main)["config"] is schema_of(program)


@pytest.mark.parametrize("program", sorted(programs()))
def test_every_program_composes(program, monkeypatch):
    """The file of each program composes with every choice of each of its groups."""
    monkeypatch.setenv("REIDSSL_DATA", "s3://bucket/sets")
    schema = schema_of(program)
    composed = load_config(schema, program)
    assert isinstance(composed, schema)
    names = {part.name for part in fields(schema)}
    for group in sorted(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()):
        defaults = yaml.safe_load((CONFIG_FOLDER / f"{program}.yaml").read_text())["defaults"]
        if group in names and any(isinstance(entry, dict) and group in entry for entry in defaults):
            for choice in (CONFIG_FOLDER / group).glob("*.yaml"):
                if (program, group, choice.stem) == ("finetune", "deepspeed", "zero3"):
                    with pytest.raises(ConfigError, match=r"deepspeed\.zero_stage must be 0, 1 or 2"):
                        load_config(schema, program, [f"{group}={choice.stem}"])
                else:
                    assert load_config(schema, program, [f"{group}={choice.stem}"])


def test_the_data_group_of_pre_training(monkeypatch):
    """A path in place of a choice, or a choice in place of a path, gives a helpful error."""

    def data(*overrides: str):
        return load_config(PretrainConfig, "pretrain", overrides).data

    assert (data().uri, data().selection) == (os.path.abspath("runs/demo/data/pretrain"), "")
    assert data("data=demo_selected").selection == os.path.abspath("runs/demo/selection")
    assert data("data=demo_selected", "data.uri=s3://bucket/x").uri == "s3://bucket/x"
    monkeypatch.delenv("REIDSSL_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"data\.uri needs the environment variable REIDSSL_DATA, which is not set"):
        data("data=luperson")
    monkeypatch.setenv("REIDSSL_DATA", "s3://bucket/sets")
    assert data("data=luperson").uri == data("data=luperson_cfs").uri == "s3://bucket/sets/luperson"
    assert data("data=luperson_cfs").selection == "s3://bucket/sets/luperson_cfs"
    for path in ("runs/x", "s3://bucket/x", "luperson_csf", "runs/epoch=9"):
        with pytest.raises(
            ConfigError,
            match=rf"data={path}: there is no configs/data/{path}\.yaml; choices: demo, .*"
            rf"A path or an s3:// prefix is given as data\.uri={path}$",
        ):
            data(f"data={path}")
    for value in ("null", ""):
        with pytest.raises(ConfigError, match=r"choices: demo, "):
            data(f"data={value}")


@pytest.mark.parametrize("program", ["score", "select", "cluster"])
def test_a_plain_key_that_has_the_name_of_a_group_takes_a_path(program):
    schema = schema_of(program)
    for text, value in (
        ("data=runs/x", "runs/x"),
        ("data='a=b, c'", "a=b, c"),
        ("data=demo", "demo"),
        ("data=a=b", "a=b"),
        ("data=a,b", "a,b"),
        ("data=[a,b]", "[a,b]"),
        ("data=${output}/data", "runs/y/data"),
    ):
        assert load_config(schema, program, ["output=runs/y", text]).data == os.path.abspath(value)
    assert load_config(schema, program, ["data=s3://bucket/x"]).data == "s3://bucket/x"
    for text, message in (
        ("data=null", "data cannot be null: write data= for none"),
        ("~data", "'~data' would remove data"),
        ("data", "'data' is not key=value; write data=value"),
        ("+data=a", "'.data=a': data exists already"),
    ):
        with pytest.raises(ConfigError, match=rf"^configuration: {message}"):
            load_config(schema, program, [text])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_for_the_program_it_names(experiment):
    text = (CONFIG_FOLDER / "experiment" / f"{experiment}.yaml").read_text()
    named = [program for program in programs() if f"platform.{program}" in text]
    assert named, "an experiment shows its own command line"
    for program in named:
        schema = schema_of(program)
        source = ["source_set=s3://bucket/source"] if "setting: uda" in text else []  # has no default
        config = load_config(schema, program, [f"experiment={experiment}", *source])
        assert to_plain(config) != to_plain(load_config(schema, program)), "changes nothing"


def test_the_published_rows_are_there():
    """TransReID-SSL, tables of section 4: three settings, two target sets, and the changes of each row."""
    for target, eps in (("market1501", 0.6), ("msmt17", 0.7)):
        other = {"market1501": "msmt17", "msmt17": "market1501"}[target]
        for model, stem in (("vit_small", "patch"), ("vit_small_ics", "ics")):
            for name, setting in (
                (f"supervised_{target}_{model}", "supervised"),
                (f"usl_{target}_{model}", "usl"),
                (f"uda_{other}_to_{target}_{model}", "uda"),
            ):
                config = load_config(FinetuneConfig, "finetune", [f"experiment={name}", "source_set=s3://bucket/source"])
                assert (config.setting, config.model.width, config.model.stem) == (setting, 384, stem)
                assert config.augment.image_size == (256, 128)
                assert setting == "supervised" or config.unsupervised.cluster.eps == eps
                # What the released code of each setting does to test images, and where it erases.
                assert config.evaluate.resize == ("bilinear" if setting == "supervised" else "bicubic")
                assert config.augment.erasing_area == ((0.02, 0.4) if setting == "usl" else (0.02, 1 / 3))
        large = load_config(FinetuneConfig, "finetune", [f"experiment=supervised_{target}_vit_base_ics"])
        assert large.model.width == 768 and large.augment.image_size == large.model.image_size == (384, 128)


# ---- what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.micro_bacth=3", r"there is no key 'stream\.micro_bacth'; did you mean stream\.micro_batch"),
        ("outptu=x", r"there is no key 'outptu'; did you mean output"),
        ("modell.width=3", r"there is no key 'modell.*did you mean model"),
        ("+stream.extra=3", r"there is no key 'stream\.extra'"),
        ("+extra=3", r"there is no key 'extra'"),
        ("++model.extra.deep=3", r"there is no key 'model\.extra'"),
        ("stream.micro_batch=many", r"stream\.micro_batch: .*'many'"),
        ("stream.micro_batch=1.5", r"stream\.micro_batch"),
        ("probe.every_steps=null", r"probe\.every_steps"),
        ("model.image_size=[64]", r"model\.image_size must have 2 values: got \[64\]"),
        ("augment.local_size=[64,32,16]", r"augment\.local_size must have 2 values: got \[64, 32, 16\]"),
        ("augment.local_size=[64,x]", r"augment\.local_size"),
        ("model.image_size=big", r"image_size"),
        ("stream=5", r"stream"),
        ("stream.micro_batch=0", r"configuration: stream\.micro_batch must be at least 1: got 0"),
        ("model.drop_path=1.5", r"configuration: model\.drop_path must be in \[0, 1\): got 1\.5"),
        ("model=vit_huge", r"(?s)vit_huge.*vit_base"),
        ("experiment=nothing", r"nothing"),
        ("stream.micro_batch", r"stream\.micro_batch"),
        ("model=null", r"model=null: there is no .*choices: vit_base, "),
        ("model.width=${nowhere}", r"nowhere"),
    ],
)
def test_refused_with_the_key_in_the_message(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, "pretrain", [override])


@pytest.mark.parametrize(
    ("program", "override", "message"),
    [
        ("pretrain", "scaling.gpus_per_worker=-1", r"scaling\.gpus_per_worker must be 0, 1, or a share between them: got -1"),
        ("pretrain", "scaling.gpus_per_worker=2", r"scaling\.gpus_per_worker must be 0, 1, or a share between them: got 2"),
        ("pretrain", "scaling.cpus_per_worker=0", r"scaling\.cpus_per_worker must be positive: got 0\.0"),
        ("pretrain", "scaling.threads=-2", r"scaling\.threads must be 0 .*: got -2"),
        ("pretrain", "seed=-1", r"seed must be 0 or more: got -1"),
        ("pipeline", "seed=-1", r"pretrain\.seed must be 0 or more: got -1"),
        ("pretrain", "deepspeed.zero_stage=4", r"deepspeed\.zero_stage must be one of 0, 1, 2, 3: got 4"),
        ("pretrain", "precision=fp16", r"precision must be one of auto, fp32, bf16: got 'fp16'"),
        ("finetune", "precision=fp16", r"precision must be one of auto, fp32, bf16: got 'fp16'"),
        ("pretrain", "clip.norm=-1", r"clip\.norm must be 0 \(off\) or more: got -1"),
        ("pretrain", "clip.per_tensor=true", r"clip\.per_tensor needs deepspeed\.zero_stage=0, .* got zero_stage=1"),
        ("pretrain", "runtime.num_gpus=-5", r"runtime\.num_gpus must be -1 .*: got -5"),
        ("pretrain", "probe.every_steps=0", r"probe\.every_steps must be at least 1: got 0"),
        ("pretrain", "length.epochs=inf", r"length\.epochs must be a finite number: got inf"),
        ("pretrain", "length.epochs=nan", r"length\.epochs must be a finite number: got nan"),
        ("pretrain", "optimizer.learning_rate=nan", r"optimizer\.learning_rate must be a finite number: got nan"),
        ("pretrain", "clip.norm=nan", r"clip\.norm must be a finite number: got nan"),
        ("pretrain", "clip.norm=inf", r"clip\.norm must be a finite number: got inf"),
        ("pretrain", "storage.retry_timeout_s=nan", r"storage\.retry_timeout_s must be a finite number: got nan"),
        ("pretrain", "augment.mean=[0.5,nan,0.5]", r"augment\.mean\[1\] must be a finite number: got nan"),
        ("pretrain", "augment.aspect=[0.5,inf]", r"augment\.aspect\[1\] must be a finite number: got inf"),
        ("finetune", "seed=-1", r"configuration: seed must be 0 or more: got -1"),
        ("finetune", "supervised.weight_decay=-0.1", r"supervised\.weight_decay must be 0 or more: got -0\.1"),
        ("finetune", "supervised.warmup_epochs=-1", r"supervised\.warmup_epochs must be 0 or more: got -1"),
        ("finetune", "supervised.label_smoothing=1", r"supervised\.label_smoothing must be in \[0, 1\): got 1"),
        ("finetune", "supervised.drop_path=1", r"supervised\.drop_path must be in \[0, 1\): got 1"),
        ("finetune", "unsupervised.temperature=0", r"unsupervised\.temperature must be positive: got 0"),
        ("finetune", "unsupervised.momentum=1.5", r"unsupervised\.momentum must be in \[0, 1\]: got 1\.5"),
        ("score", "pool.cpus_per_actor=-1", r"pool\.cpus_per_actor must be 0 or more: got -1"),
        ("score", "pool.gpus_per_actor=-1", r"pool\.gpus_per_actor must be 0 or more: got -1"),
        ("select", "seed=-1", r"configuration: seed must be 0 or more: got -1"),
        ("tune", "+space.unsupervised.cluster={eps:[0.5,nan]}", r"space\.unsupervised\.cluster\.eps\[1\] must be a finite"),
        ("pipeline", "row_group_rows=0", r"configuration: row_group_rows must be at least 1: got 0"),
        ("pipeline", "cfs.proxy_samples=-1", r"cfs\.proxy_samples must be 0 .*: got -1"),
        ("pipeline", "finetune.seed=-1", r"finetune\.seed must be 0 or more: got -1"),
        ("pipeline", "pretrain.seed=-1", r"pretrain\.seed must be 0 or more: got -1"),
    ],
)
def test_impossible_values_are_refused_before_anything_starts(program, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(schema_of(program), program, [override])


@dataclass(kw_only=True)
class LeafConfig:
    size: tuple[int, int] = (1, 2)
    names: list[str] = field(default_factory=lambda: ["a"])
    """What they
    are called."""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size[0] < 1:
            raise ValueError(f"size must be positive: got {self.size}")


@dataclass(kw_only=True)
class RootConfig:
    leaf: LeafConfig = field(default_factory=LeafConfig)
    on: bool = False


def test_a_tag_in_a_file_is_one_line(monkeypatch, tmp_path):
    """YAML tags can name Python objects. They are refused where a file is composed, and where --help only looks at it."""
    monkeypatch.setattr("platform.engine.config.groups.CONFIG_FOLDER", tmp_path / "configs")
    monkeypatch.setattr("platform.engine.config.compose.CONFIG_FOLDER", tmp_path / "configs")
    shutil.copytree(CONFIG_FOLDER, tmp_path / "configs")
    (tmp_path / "configs/experiment/evil.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    line = r"evil\.yaml, line 1: .*python/object/apply:os\.system'; tags such as !!python/\.\.\. are not allowed"
    with pytest.raises(ConfigError, match=line):
        load_config(PretrainConfig, "pretrain", ["experiment=evil"])
    with pytest.raises(ConfigError, match=line):
        experiments_of("pretrain", PretrainConfig)
    with pytest.raises(ConfigError, match=r"^configuration: seed: '!!python/name:os\.system' is not a value"):
        load_config(PretrainConfig, "pretrain", ["seed=!!python/name:os.system"])
    assert not (tmp_path / "owned").exists()


def test_mappings_are_checked_like_files():
    built = to_dataclass(RootConfig, {"leaf": {"size": [3, 4], "limit": 5}, "on": True})
    assert built == RootConfig(leaf=LeafConfig(size=(3, 4), limit=5), on=True)
    assert to_dataclass(RootConfig, OmegaConf.create({"on": "yes"})).on is True
    for values, message in [
        ({"leaf": {"sise": [1, 2]}}, r"no key 'leaf\.sise'; did you mean leaf\.size"),
        ({"leaf": {"size": [0, 1]}}, r"leaf\.size must be positive: got \(0, 1\)"),
        ({"on": "perhaps"}, r"on: .*perhaps"),
    ]:
        with pytest.raises(ConfigError, match=message):
            to_dataclass(RootConfig, values)


# ---- schemas, and the edge of a program


@pytest.mark.parametrize("program", sorted(programs()))
def test_schemas_hold_only_what_omegaconf_checks(program):
    def check(schema: type) -> None:
        assert OmegaConf.structured(schema) is not None
        for name, hint in get_type_hints(schema).items():
            check(hint) if is_dataclass(hint) else None
            assert hint is not dict, name

    check(schema_of(program))


def test_a_users_mistake_ends_with_its_text_and_status_2():
    ended = subprocess.run([sys.executable, "-m", "platform.select", "fractoin=0.5"], cwd=ROOT, text=True, capture_output=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.strip() == "error: configuration: there is no key 'fractoin'; did you mean fraction or stratify?"


def test_the_sweep_has_the_settings_of_the_demo():
    """demo_sweep.yaml repeats small.yaml for another program."""
    demo = load_config(PipelineConfig, "pipeline", ["experiment=demo"]).pretrain
    sweep = load_config(PretrainConfig, "pretrain", ["experiment=demo_sweep", "data.uri=unused"])
    for name in ("model", "augment", "optimizer", "clip", "stream"):
        assert getattr(sweep, name) == getattr(demo, name), name
    assert (sweep.objective.name, sweep.objective.dino) == (demo.objective.name, demo.objective.dino)
