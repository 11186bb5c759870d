"""Every `python -m platform.<program> ...` in the README, the guides and the experiments composes."""

import importlib
import re
import shlex
from pathlib import Path
from typing import get_type_hints

import pytest

from platform.engine.config.compose import load_config
from platform.engine.sweep.trials import planned
from platform.pipeline import PipelineConfig
from platform.tune import TuneConfig

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [
    "README.md",
    "CONTRIBUTING.md",
    "cluster/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
SWEEPS = sorted(f"configs/sweep/{path.name}" for path in (ROOT / "configs" / "sweep").glob("*.yaml"))
EXPERIMENTS = sorted(f"configs/experiment/{path.name}" for path in (ROOT / "configs" / "experiment").glob("*.yaml"))


def commands(guide: str) -> list[str]:
    """Program and overrides of every command, in code blocks and in running text, with continued lines joined."""
    text = (ROOT / guide).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"python -m platform\.(\w+[^\n`#]*)", text)
    return sorted({" ".join(command.split()) for command in found})


@pytest.mark.parametrize(
    ("guide", "command"), [(guide, command) for guide in [*GUIDES, *EXPERIMENTS, *SWEEPS] for command in commands(guide)]
)
def test_the_commands_of_the_guides_compose(guide, command):
    program, *overrides = shlex.split(command)
    schema = get_type_hints(importlib.import_module(f"platform.{program}").main)["config"]
    given = [word for word in overrides if word not in ("...", "--help", "--show-config")]
    assert load_config(schema, program, given)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_shows_its_own_command(experiment):
    """Each experiment file has the command that runs it."""
    assert any(f" experiment={Path(experiment).stem} " in f"{command} " for command in commands(experiment))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_shows_its_own_command_and_is_a_space(sweep):
    """Each file of configs/sweep has the command that runs it, and all its points are valid configurations."""
    [command] = commands(sweep)
    assert f" sweep={Path(sweep).stem} " in command
    config = load_config(TuneConfig, "tune", shlex.split(command)[1:])
    assert len(planned(config)) > 1 and all(isinstance(path, str) for path in config.space.get("checkpoint", [""]))


def test_the_rows_of_the_demo_guide_have_a_command_each():
    """Rows of the second table of docs/demo.md, by width of the stem and seed."""
    rows = re.findall(r"^\| (\d\d) \| (\d) \|", (ROOT / "docs" / "demo.md").read_text(encoding="utf-8"), re.MULTILINE)
    runs = [
        load_config(PipelineConfig, "pipeline", shlex.split(command)[1:])
        for command in commands("docs/demo.md")
        if command.startswith("pipeline")
    ]
    assert rows and {(str(run.pretrain.model.stem_width), str(run.finetune.seed)) for run in runs} == set(rows)
    for run in runs:  # all parts of a run have the same seed
        worlds = [run.pretrain_set.synthetic.seed, run.source_set.synthetic.seed, run.target_set.synthetic.seed]
        assert {*worlds, run.pretrain.seed} == {run.finetune.seed}
    assert all(one == other for one in runs for other in runs if one.output == other.output)
