"""`--help`: the current values, in the width of the terminal, without delay."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from platform.engine.config.compose import load_config, to_plain
from platform.engine.config.groups import choices_of_groups, experiments_of, groups_of
from platform.engine.config.help import field_docs, help_text, in_words
from platform.engine.config.program import docstring
from platform.engine.errors import ConfigError
from platform.engine.schemas import SCHEMAS, schema_of

ROOT = Path(__file__).resolve().parents[4]
WIDE = 100_000
HEAVY = ("torch", "torchvision", "ray", "timm", "deepspeed", "numba", "sklearn", "scipy", "pandas", "av", "faiss")


def shown(program: str, *overrides: str) -> dict[str, str]:
    """{key: value as text} from the help of a program."""
    text = help_text(schema_of(program), program, "", overrides, WIDE)
    return dict(re.findall(r"^  ([\w.]+)=(.*)$", text.partition("\nsettings, ")[2], re.MULTILINE))


def leaves(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("program", sorted(SCHEMAS))
def test_every_setting_is_shown_with_the_value_of_show_config_and_a_meaning(program):
    expected = leaves(to_plain(load_config(schema_of(program), program)))
    printed = shown(program)
    assert list(printed) and printed.keys() == expected.keys()
    for key, text in printed.items():
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={text}"]))
        for part in key.split("."):
            value = value[part]
        assert ("" if text == "" else value) == expected[key], key
    lines = help_text(schema_of(program), program, "", (), WIDE).splitlines()
    silent = [
        line
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if re.match(r"  [\w.]+=", line) and not below.startswith("      ")
    ]
    assert silent == []


def test_what_is_shown_can_be_given():
    for program in ("finetune", "evaluate", "tune"):
        given = [f"{key}={text}" for key, text in shown(program).items()]
        assert load_config(schema_of(program), program, given) == load_config(schema_of(program), program)
    for value in (["a", "b c", "d,e", 'f"g', "h]"], ["x=y"]):
        assert load_config(
            schema_of("evaluate"), "evaluate", [f"checkpoints={in_words([f'/{each}' for each in value])}"]
        ).checkpoints == [f"/{each}" for each in value]
    for text in ("null", "'quoted'", '"quoted"', "it's"):
        assert load_config(schema_of("finetune"), "finetune", [f"tracking.wandb={in_words(text)}"]).tracking.wandb == text


def test_files_and_the_rest_of_the_command_line_count():
    assert (shown("tune")["finetune.setting"], shown("finetune")["clip.norm"]) == ("usl", "0.0")
    changed = shown("pretrain", "model=vit_tiny", "experiment=demo_sweep", "stream.micro_batch=3", "output=/m/x=1")
    assert (changed["model.width"], changed["stream.micro_batch"], changed["output"]) == ("128", "3", "/m/x=1")
    assert shown("finetune", "experiment=uda_msmt17_to_market1501_vit_small")["setting"] == "uda"  # source_set is missing
    with pytest.raises(ConfigError, match="there is no key 'outptu'"):
        shown("finetune", "outptu=x")


@pytest.mark.parametrize("program", sorted(SCHEMAS))
@pytest.mark.parametrize("width", [60, 100])
def test_lines_fit_the_terminal(program, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = help_text(schema_of(program), program, docstring(program))
    assert [line for line in text.splitlines() if len(line) > width] == []
    words = " ".join(re.sub(r"\\\n", " ", text).split())
    for word in docstring(program).split():
        assert word in words or word == "\\" or len(word) > width - 8, word
    assert f"usage: python -m platform.{program}" in words


@pytest.mark.parametrize("program", ["pretrain", "finetune", "pipeline", "score"])
def test_groups_and_the_experiments_that_compose(program):
    def composes(name: str) -> bool:
        try:
            load_config(
                schema_of(program), program, [f"experiment={name}", *(["source_set=/s"] if program == "finetune" else [])]
            )
        except ConfigError:
            return False
        return True

    found = experiments_of(program, schema_of(program))
    if "experiment" in groups_of(program):
        assert found == [name for name in choices_of_groups()["experiment"] if composes(name)]
    else:
        assert found == []
    text = help_text(schema_of(program), program, "", (), WIDE)
    listed = dict(re.findall(r"^  ([\w@.]+) +(.*)$", text.partition("\ngroups:\n")[2].partition("\n\n")[0], re.MULTILINE))
    expected = {group: ", ".join(choices_of_groups()[group.partition("@")[0]]) for group in groups_of(program) - {"experiment"}}
    assert listed == expected | ({"experiment": ", ".join(found)} if found else {})


def test_nothing_heavy_is_imported_before_there_is_work():
    """Checked with real commands: help, --show-config, and a mistake."""
    code = f"""
import runpy, sys
for program in {sorted(SCHEMAS)}:
    for argument, status in (("--help", 0), ("--show-config", 0), ("outptu=x", 2)):
        sys.argv = [program, argument]
        try:
            runpy.run_module("platform." + program, run_name="__main__")
        except SystemExit as ended:
            assert ended.code == status, (program, argument, ended.code)
        loaded = sorted(set(sys.modules) & set({HEAVY}))
        assert not loaded, (program, argument, loaded)
print("well", file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert ended.returncode == 0 and ended.stderr.strip().endswith("well"), ended.stderr[-3000:]
    assert ended.stderr.count("error: configuration: there is no key 'outptu'") == len(SCHEMAS)


@pytest.mark.parametrize("module", ["platform.select --help", "platform.select --show-config", "platform"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(module, tmp_path):
    """Like `--help | head -1`, with a reader that has closed the pipe before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", *module.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert ended.stderr == "" and ended.returncode == -signal.SIGPIPE


def test_meanings_of_an_inherited_schema():
    from reidssl.objectives.objective_config import DinoMimConfig

    meanings = field_docs(DinoMimConfig)
    assert meanings["patch_weight"].startswith("Weight of the patches'") and meanings["hidden"].startswith("Hidden width")


def test_a_command_of_several_lines_is_folded_as_one():
    doc = "Purpose.\n\n  python -m platform.x first=1 \\\n      second=2 third=" + 30 * "3"
    shown = help_text(schema_of("report"), "report", doc, (), 60).split("usage:")[0]
    command = [line for line in shown.splitlines() if line.startswith("  ")]
    assert all(line.endswith(" \\") for line in command[:-1]) and not command[-1].endswith("\\") and len(command) == 2
