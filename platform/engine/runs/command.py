"""The command that made a run, from the configuration in its folder."""

import shlex
from typing import Any

from platform.engine.config.compose import flat, load_config, to_plain
from platform.engine.config.help import in_words
from platform.engine.config.paths import Role, map_paths
from platform.engine.errors import UserError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import CONFIG, VOLATILE
from platform.engine.schemas import SCHEMAS, schema_of
from platform.engine.storage.location import Location


def command_of(folder: Location) -> str:
    """The program and every setting that differs from its default, as typed; "" if the folder is no run of a program.

    Settings that do not change the results are left out. Of a path only its last component is shown: the command is made public
    with an exported model, the folders of the training machine are private.
    """
    file = folder / CONFIG
    if not file.exists():
        return ""
    try:
        record = read_record(file, "config", dict, "")
    except UserError:
        return ""  # another library's config.json
    program = record.get("program")
    if program not in SCHEMAS:
        return ""
    schema = schema_of(program)
    defaults, own = (
        flat(map_paths(schema, values, _name)) for values in (to_plain(load_config(schema, program)), record["config"])
    )
    changed = {key: value for key, value in own.items() if key in defaults and value != defaults[key] and not _is_volatile(key)}
    if program == "finetune":
        changed = {key: value for key, value in changed.items() if not _is_unused(key, own)}
    given = [shlex.quote(f"{key}={in_words(value)}") for key, value in changed.items()]
    return " ".join([f"python -m platform.{program}", *given])


def _name(path: str, key: str, role: Role) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _is_unused(key: str, settings: dict[str, Any]) -> bool:
    """Whether a fine-tuning run does not read this setting: that of another phase, or the model if it starts from a file."""
    other = {"supervised": "unsupervised.", "usl": "supervised."}.get(settings["setting"])
    given = bool(settings["checkpoint"]) and key not in ("model.num_cameras", "model.camera_weight")
    return bool(other and key.startswith(other)) or (given and key.startswith("model."))


def _is_volatile(key: str) -> bool:
    return any(f".{name}." in f".{key}." for name in VOLATILE)
