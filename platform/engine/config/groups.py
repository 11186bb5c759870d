"""Config groups: the folders below `configs/` from which `group=choice` selects a file, and messages for wrong choices."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from platform.engine.config.paths import hint_of
from platform.engine.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CONFIG_FOLDER = ROOT / "configs"


def choices_of_groups() -> dict[str, list[str]]:
    """Name of every config group -> the names of its choices."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONFIG_FOLDER.iterdir())
        if folder.is_dir()
    }


def groups_of(program: str) -> set[str]:
    """The groups in the defaults list of `configs/<program>.yaml`; empty if there is no such file."""
    file = CONFIG_FOLDER / f"{program}.yaml"
    loaded = _read(file) if file.exists() else {}
    return {group for entry in loaded.get("defaults", []) if isinstance(entry, dict) for group in entry}


def _read(file: Path) -> Any:
    """The content of a YAML file. Raises ConfigError if it is not YAML of plain values."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(in_one_line(error, file)) from None


def in_one_line(error: yaml.YAMLError, file: Path | str = "configs/") -> str:
    """A message in one line about a file that is not YAML of plain values. file: used if the error does not name it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    name = mark.name if mark and not mark.name.startswith("<") else file
    place = f"{name}, line {mark.line + 1}" if mark else str(name)
    advice = "tags such as !!python/... are not allowed, only plain values" if "tag" in str(problem) else "correct the file"
    return f"configuration: {place}: {' '.join(str(problem).split())}; {advice}"


def experiments_of(program: str, schema: type) -> list[str]:
    """The experiments whose settings and groups all exist in the program, determined without composing them."""
    groups, folder = groups_of(program), CONFIG_FOLDER / "experiment"
    return [file.stem for file in sorted(folder.glob("*.yaml")) if "experiment" in groups and _fits(file, groups, schema)]


def _fits(file: Path, groups: set[str], schema: type) -> bool:
    loaded = _read(file)
    for entry in loaded.pop("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_" and not _fits(file.with_name(f"{entry}.yaml"), groups, schema):
                return False
        elif any(group.removeprefix("override ").strip("/ ") not in groups for group in entry):
            return False
    return all(hint_of(schema, key) is not None for key in _leaves(loaded))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def no_such_choice(schema: type, overrides: Sequence[str]) -> str:
    """Error message about the first `group=choice` without a file; "" if all files exist."""
    hints, choices = get_type_hints(schema), choices_of_groups()
    for override in overrides:
        name, _, value = override.partition("=")
        group, at, _ = name.partition("@")
        known = [*choices.get(group, [value]), *(["null"] if group == "experiment" else [])]
        if value in known or value[:1] in ("{", "[") or not (at or group in hints or group == "experiment"):
            continue
        text = f"configuration: {override}: there is no configs/{group}/{value}.yaml; choices: {', '.join(choices[group])}"
        has_uri = group in hints and "uri" in get_type_hints(hints[group])
        return f"{text}. A path or an s3:// prefix is given as {group}.uri={value}" if has_uri else text
    return ""
