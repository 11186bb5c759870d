"""Paths among the settings: declared by type, made absolute once, and the same place from every folder."""

import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from platform.engine.config.compose import load_config, to_plain
from platform.engine.config.help import field_docs
from platform.engine.config.paths import Role, SettingsOf, absolute, bare, mark_of, same_place, service
from platform.engine.errors import ConfigError, UserError
from platform.engine.runs.run_folder import open_run
from platform.engine.schemas import SCHEMAS, schema_of
from platform.engine.storage.location import StorageConfig
from platform.report import main as report

PATH_WORDS = re.compile(r"(?i)\b(folders?|files?|paths?|shards|checkpoints?|page|director(y|ies))\b|s3://")
# Settings whose names or texts sound like files but are no paths: lists of kinds, an AWS profile, a resource of nodes, a column.
NO_PATHS = {
    *(f"RawConfig.{name}" for name in ("kind", "labeled", "pattern", "splits")),
    "StorageConfig.profile",
    "CropConfig.form",
    "LoadConfig.weights",
    "SelectConfig.stratify",
}
RELATIVE = {  # every path of every program: key -> what a user writes
    "cluster": ["output", "checkpoint", "data"],
    "evaluate": ["checkpoints", "test_sets", "output"],
    "export": ["checkpoint", "output"],
    "finetune": ["output", "checkpoint", "source_set", "target_set", "tracking.tensorboard", "tracking.audit", "tracking.mlflow"],
    "ingest": ["raw.path", "raw.detections", "output"],
    "pipeline": [
        "output",
        "pretrain_set.path",
        "source_set.path",
        "target_set.path",
        "target_set.detections",
        "pretrain.checkpoint.resume_from",
        "pretrain.tracking.tensorboard",
    ],
    "pretrain": [
        "output",
        "data.uri",
        "data.selection",
        "probe.uri",
        "checkpoint.resume_from",
        "tracking.tensorboard",
        "tracking.audit",
        "tracking.mlflow",
    ],
    "report": ["run", "output"],
    "score": ["output", "source_proxy", "target_proxy", "features_from", "data"],
    "select": ["output", "scores", "reference", "data"],
    "tune": [
        "output",
        "finetune.checkpoint",
        "finetune.target_set",
        "finetune.source_set",
        "space.checkpoint",
        "space.target_set",
    ],
}


def value_at(plain: dict, key: str):
    for part in key.split("."):
        plain = plain[part]
    return plain


def schemas(schema: type):
    yield schema
    for hint in get_type_hints(schema).values():
        if is_dataclass(hint):
            yield from schemas(hint)


@pytest.mark.parametrize("program", sorted(SCHEMAS))
def test_a_setting_that_speaks_of_files_is_declared_as_a_path(program):
    """A field that names a file or folder must have the type InputPath or OutputPath, or a list of them."""
    for schema in schemas(schema_of(program)):
        hints, meanings = get_type_hints(schema, include_extras=True), field_docs(schema)
        for each in fields(schema):
            hint = hints[each.name]
            inner = bare(hint).__args__[0] if getattr(bare(hint), "__origin__", None) is list else hint
            declared = mark_of(inner, Role) or mark_of(hint, SettingsOf)
            text = bare(inner) is str or mark_of(hint, SettingsOf)
            speaks = PATH_WORDS.search(f"{each.name.replace('_', ' ')}: {meanings.get(each.name, '')}")
            if text and speaks and f"{schema.__name__}.{each.name}" not in NO_PATHS:
                assert declared, f"{schema.__name__}.{each.name} speaks of '{speaks[0]}': declare it as config/paths.py says"


@pytest.mark.parametrize("program", sorted(SCHEMAS))
def test_every_path_of_every_program_counts_from_the_users_folder(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    forms = [
        ("a/b", f"{tmp_path}/a/b"),
        ("./a/../c d", f"{tmp_path}/c d"),
        ("~/x", "/home/someone/x"),
        ("file:///m/%C3%A9", "/m/é"),
        ("s3://bucket//x/", "s3://bucket/x"),
        ("/m/y/", "/m/y"),
    ]
    for text, meant in forms:
        given = []
        for key in RELATIVE[program]:
            if not (text.startswith("s3") and key in ("tracking.audit", "tracking.mlflow")):
                listed = key in ("checkpoints", "test_sets", "space.checkpoint", "space.target_set")
                given.append(f"{key}=[{text},s3://bucket/y]" if listed else f"{key}={text}")
        kinds = [f"{key.removesuffix('detections')}kind=video" for key in RELATIVE[program] if key.endswith("detections")]
        plain = to_plain(load_config(schema_of(program), program, [*given, *kinds]))
        for key in (entry.partition("=")[0] for entry in given):
            found = value_at(plain, key)
            assert found == ([meant, "s3://bucket/y"] if isinstance(found, list) else meant), key


def test_no_stored_path_is_relative_and_empty_ones_stay_empty(tmp_path, monkeypatch):
    """This includes defaults and the files below configs/."""
    monkeypatch.chdir(tmp_path)
    for program in SCHEMAS:
        text = str(to_plain(load_config(schema_of(program), program)))
        assert "'runs/" not in text
    plain = to_plain(load_config(schema_of("pretrain"), "pretrain", ["data=demo_selected", "probe.uri="]))
    assert plain["data"] == {"uri": f"{tmp_path}/runs/demo/data/pretrain", "selection": f"{tmp_path}/runs/demo/selection"}
    assert plain["probe"]["uri"] == "" and plain["output"] == f"{tmp_path}/runs/pretrain"
    monkeypatch.setenv("REIDSSL_DATA", "sets")
    assert load_config(schema_of("pretrain"), "pretrain", ["data=luperson"]).data.uri == f"{tmp_path}/sets/luperson"


def test_what_is_no_place_is_refused_with_its_key():
    for text, message in [
        ("gs://bucket/x", r"'gs://' is not supported"),
        ("s3://", "does not name a bucket"),
        ("s3:/bucket/x", "does not name a bucket"),
        ("file://server/x", "names the host 'server'"),
        ("s3://user:secret@bucket/x", r"must not hold credentials"),
        ("s3://bucket/../x", "is not a name below"),
        ("  ", "is not a location"),
    ]:
        for program, key in (("pretrain", "data.uri"), ("evaluate", "checkpoints"), ("tune", "space.checkpoint")):
            with pytest.raises(ConfigError, match=rf"^configuration: {re.escape(key)}(\[0\])?: .*{message}") as refused:
                load_config(schema_of(program), program, [f"{key}={text!r}" if key == "data.uri" else f"{key}=[{text!r}]"])
            assert "secret" not in str(refused.value)


def test_spellings_of_a_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("file:/m/x") == absolute("file://localhost/m/x") == absolute("FILE:///m/x") == "/m/x"
    assert absolute("file:///m/a%23b#c?d") == "/m/a#b#c?d"
    assert absolute("c:/x") == f"{tmp_path}/c:/x" and absolute("a#b%20?") == f"{tmp_path}/a#b%20?"
    assert service("http://host:5000") == "http://host:5000" and service("databricks") == "databricks"
    assert service("sqlite:///runs/m.db") == f"sqlite:///{tmp_path}/runs/m.db" and service("sqlite:////m.db") == "sqlite:////m.db"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert same_place("link/x") == same_place(f"file://{tmp_path}/real/x") and absolute("link/x") == f"{tmp_path}/link/x"


def test_a_run_goes_on_from_another_folder_in_another_spelling(tmp_path, monkeypatch):
    schema = schema_of("finetune")

    def start(folder: Path, *overrides: str):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        config = load_config(schema, "finetune", overrides)
        return open_run("finetune", config.output, config, StorageConfig())

    first = start(tmp_path, "output=out/r", "checkpoint=out/pre", "target_set=sets/t")
    assert first.settings["checkpoint"] == f"{tmp_path}/out/pre" and first.location.uri == f"{tmp_path}/out/r"
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    start(tmp_path / "other", "output=../out/r", f"checkpoint=file://{tmp_path}/out/pre", "target_set=../elsewhere/sets/t")
    with pytest.raises(UserError, match=rf"checkpoint: '{tmp_path}/out/pre' -> '{tmp_path}/other/out/pre'"):
        start(tmp_path / "other", "output=../out/r", "checkpoint=out/pre", "target_set=../sets/t")


@pytest.fixture
def job_folder(tmp_path, monkeypatch) -> Path:
    """Like `ray job submit --working-dir .`: the current folder is Ray's copy of the submitted folder."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    (folder / "sets" / "a").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return folder


def test_in_a_submitted_job_relative_outputs_are_refused_and_inputs_must_be_there(job_folder, tmp_path, monkeypatch):
    def compose(*overrides: str, program: str = "pretrain"):
        return load_config(schema_of(program), program, overrides)

    assert compose("output=/m/out", "data.uri=sets/a").data.uri == f"{job_folder}/sets/a"
    for given in (["output=out/x"], [], ["output=/m/out", "tracking.audit=log"]):
        with pytest.raises(ConfigError, match=r"(output|audit): '\S+' would be lost: .* temporary copy .* Write \S+=s3://"):
            compose("data.uri=sets/a", *given)
    with pytest.raises(ConfigError, match=rf"data\.uri: 'sets/b' is not in the folder of this job, {job_folder}, .*absolute"):
        compose("output=/m/out", "data.uri=sets/b")
    with pytest.raises(ConfigError, match=r"tracking\.mlflow: 'sqlite:///m\.db' would be lost"):
        compose("output=/m/out", "data.uri=sets/a", "tracking.mlflow=sqlite:///m.db")
    assert compose("output=s3://bucket/x", "raw.kind=synthetic", program="ingest").output == "s3://bucket/x"
    assert compose("output=/m/out", program="pipeline").output == "/m/out"  # the outputs of its stages are below it
    assert compose("output=/m/out", "finetune.target_set=sets/a", program="tune").output == "/m/out"
    with pytest.raises(UserError, match=r"output is empty, and the folder of this job, where the page would go"):
        report(compose("run=sets/a", program="report"))
    monkeypatch.chdir(tmp_path)  # the entrypoint changed to a permanent folder
    assert compose("output=out/x", "data.uri=sets/b").output == f"{tmp_path}/out/x"


def test_relative_to_home_and_to_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("~") == "/home/someone" and absolute("a~b") == os.path.abspath("a~b") and absolute("/") == "/"
