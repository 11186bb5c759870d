"""Config groups: folders below `configs/` from which `group=choice` takes a file, and what else a user may mean by it."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
CONFIG_FOLDER = ROOT / "configs"


def choices_of_groups() -> dict[str, list[str]]:
    """Every config group and what there is to choose."""
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
            for folder in sorted(CONFIG_FOLDER.iterdir()) if folder.is_dir()}


def groups_of(program: str) -> set[str]:
    """The groups that `configs/<program>.yaml` chooses from; empty if there is no such file."""
    file = CONFIG_FOLDER / f"{program}.yaml"
    loaded: Any = OmegaConf.load(file) if file.exists() else {}
    entries = loaded.get("defaults", [])
    return {str(group) for entry in entries if OmegaConf.is_dict(entry) for group in entry}


def split_groups(schema: type, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what Hydra composes, what is set afterwards). Hydra would take `data=path` of a program whose `data` is a plain key
    for a choice of the group configs/data/, which another program has."""
    hints = get_type_hints(schema)
    plain = {group for group in choices_of_groups() if group in hints and not is_dataclass(hints[group])}
    later = [override for override in overrides if override.partition("=")[0].lstrip("+~") in plain]
    return [override for override in overrides if override not in later], later


def no_such_choice(schema: type, overrides: Sequence[str]) -> str:
    """What to say about the first `group=choice` for which there is no file, or "" if all are there."""
    hints, choices = get_type_hints(schema), choices_of_groups()
    for override in overrides:
        group, _, value = override.partition("=")
        known = [*choices.get(group, [value]), *(["null"] if group == "experiment" else [])]
        if value in known or value[:1] in ("{", "[") or group not in (*hints, "experiment"):
            continue
        text = f"configuration: {override}: there is no configs/{group}/{value}.yaml; choices: {', '.join(choices[group])}"
        has_uri = group in hints and "uri" in get_type_hints(hints[group])
        return f"{text}. A path or an s3:// prefix is given as {group}.uri={value}" if has_uri else text
    return ""
