"""Paths among the settings: they are declared by their type and made absolute when the configuration is composed.

    source: InputPath = ""                                   is read
    output: OutputPath = "runs/pretrain"                     is written
    models: list[InputPath] = field(default_factory=list)    several paths
    space: Annotated[dict[str, Any], SettingsOf(Config)]     values for the settings of another schema

Workers, tasks and trials have their own working folders, and a run may be continued from another folder. So all other code gets
only absolute paths and s3:// URIs. A relative path is relative to the user's current folder, even if it comes from a file below
configs/. "" stays "".
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import unquote

CODE = Path(__file__).resolve().parents[3]
BUCKET_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,254}")


class Role(Enum):
    """How a program uses the path in a setting."""

    INPUT = "is read"
    OUTPUT = "is written"
    SERVICE = "may also be the address of a server"


InputPath = Annotated[str, Role.INPUT]
OutputPath = Annotated[str, Role.OUTPUT]
ServiceAddress = Annotated[str, Role.SERVICE]
"""Address of a server, or a folder or SQLite file instead: http://host:5000, sqlite:///runs/mlflow.db, runs/mlflow."""


@dataclass(frozen=True)
class SettingsOf:
    """Annotation of a dict whose keys are settings of `schema`, nested or dotted, and whose values are lists of values.

    One of `words` may follow the key of a setting and says how its list is meant, e.g. space.seed.choice=[0,1].
    """

    schema: type
    words: tuple[str, ...] = ()

    def setting(self, key: str) -> str:
        """The key without such a word at its end."""
        above, dot, last = key.rpartition(".")
        return above if dot and last in self.words else key


def absolute(text: str) -> str:
    """A path or file:// URI as an absolute path; an s3:// URI without empty components. Raises ValueError for anything else."""
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} is not a location: give a path, file:///path or s3://bucket/prefix")
    scheme, slashes, rest = _split(text)
    if scheme == "s3":
        return _s3(text, slashes, rest)
    if scheme == "file":
        host, slash, path = rest.partition("/") if len(slashes) == 2 else ("", "/", rest)
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"'{text}' names the host '{host}': write file:///path with three slashes, or the path alone")
        return os.path.abspath("/" + unquote(path).lstrip("/"))
    if len(slashes) == 2:
        raise ValueError(
            f"'{scheme}://' is not supported: use a path, file:// or s3:// (other stores through their "
            "S3-compatible endpoint, storage.endpoint_url)"
        )
    return os.path.abspath(os.path.expanduser(text))


def same_place(text: str) -> str:
    """A canonical form of a path, with links resolved, that is equal for every spelling. For comparisons, never to be stored."""
    try:
        found = absolute(text)
    except ValueError:
        return text
    return found if found.startswith("s3://") else os.path.realpath(found)


def service(text: str) -> str:
    """The address of a server unchanged; the path of a folder or SQLite file made absolute."""
    if text.startswith("sqlite:///") and text != "sqlite:///:memory:":
        return "sqlite:///" + os.path.abspath(os.path.expanduser(text.removeprefix("sqlite:///")))
    scheme, _, _ = _split(text)
    return text if scheme not in ("", "file") or text == "databricks" else absolute(text)


def _split(text: str) -> tuple[str, str, str]:
    """(scheme in lower case, "/" or "//", the rest) of a URI; ("", "", text) of a path. `c:/x` is a path."""
    found = re.match(r"(?i)(?:(file|s3):(/)(?!/)|([a-z][a-z0-9+.-]*):(//))", text)
    if not found:
        return "", "", text
    return (found[1] or found[3]).lower(), found[2] or found[4], text[found.end() :]


def _s3(text: str, slashes: str, rest: str) -> str:
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise ValueError(
            "an s3:// URI must not hold credentials: remove the part before '@' and use the "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY variables or storage.profile"
        )
    if len(slashes) != 2 or not BUCKET_NAME.fullmatch(bucket):
        raise ValueError(f"'{text}' does not name a bucket: write s3://bucket/prefix")
    parts = [part for part in key.split("/") if part]
    for part in parts:
        if part in (".", ".."):
            raise ValueError(f"{part!r} is not a name below s3://{bucket}: '..', '.', empty and absolute parts are refused")
    return "/".join([f"s3://{bucket}", *parts])


# ---- the settings of a schema that are paths


def bare(hint: Any) -> Any:
    """The type without its annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def mark_of(hint: Any, kind: type) -> Any:
    """The annotation of the type that is an instance of `kind`; None if there is none."""
    marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, kind)), None)


def hint_of(schema: Any, key: str) -> Any:
    """The declared type of a dotted key, with its annotations; None if there is no such key."""
    name, _, rest = key.partition(".")
    settings = mark_of(schema, SettingsOf)
    if settings:
        inner = hint_of(settings.schema, settings.setting(key))
        return None if inner is None else GenericAlias(list, (inner,)) if not is_dataclass(bare(inner)) else inner
    schema = bare(schema)
    if not is_dataclass(schema):
        return dict[str, Any] if get_origin(schema) is dict else None
    hint = get_type_hints(schema, include_extras=True).get(name)
    return hint if hint is None or not rest else hint_of(hint, rest)


Change = Callable[[str, str, Role], str]
"""Function (path, full key, role) -> path."""


def map_paths(hint: Any, value: Any, change: Change, key: str = "") -> Any:
    """`value`, plain data of the type `hint`, with `change` applied to every path in it. Empty paths stay empty."""
    role = mark_of(hint, Role)
    if role and isinstance(value, str):
        return change(value, key, role) if value else value
    settings = mark_of(hint, SettingsOf)
    if settings and isinstance(value, Mapping):
        return _map_space(settings, value, change, key, "")
    hint = bare(hint)
    below = f"{key}." if key else ""
    if is_dataclass(hint) and isinstance(value, Mapping):
        hints = get_type_hints(hint, include_extras=True)
        return {name: map_paths(hints.get(name), each, change, f"{below}{name}") for name, each in value.items()}
    inner = get_args(hint)
    if get_origin(hint) is list and isinstance(value, list):
        return [map_paths(inner[0], each, change, f"{key}[{number}]") for number, each in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, Mapping):
        return {name: map_paths(inner[1], each, change, f"{below}{name}") for name, each in value.items()}
    return value


def _map_space(settings: SettingsOf, values: Mapping[str, Any], change: Change, key: str, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        hint, full = hint_of(settings.schema, settings.setting(prefix + name)), f"{key}.{name}"
        if isinstance(value, Mapping):
            found[name] = _map_space(settings, value, change, full, f"{prefix}{name}.")
        elif isinstance(value, list):
            found[name] = map_paths(GenericAlias(list, (hint,)) if hint else None, value, change, full)
        else:
            found[name] = map_paths(hint, value, change, full)
    return found


# ---- the folder that relative paths are relative to


def job_copy() -> str:
    """The working folder of a submitted job, if it is Ray's temporary copy of the submitted files, or the folder of the code on
    the head (of a job that brought no files); else ""."""
    folder = Path.cwd()
    temporary = "working_dir_files" in folder.parts or folder == CODE
    return str(folder) if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and temporary else ""


def in_job_copy(place: str) -> bool:
    """Whether an absolute path, or the path at the end of a URI, is inside `job_copy`."""
    copy = job_copy()
    return bool(copy) and f"{copy}/" in f"{place}/"


def resolve(text: str, key: str, role: Role) -> str:
    """The absolute form of a user's path or address. Raises ValueError, whose text begins with the key, if it is not usable.

    In a submitted job, outputs in Ray's temporary copy are refused, and so are inputs that do not exist there.
    """
    try:
        found = service(text) if role is Role.SERVICE else absolute(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if not in_job_copy(found) or (role is Role.INPUT and os.path.exists(found)):
        return found
    if role is Role.INPUT:
        trouble = f"is not in the folder of this job, {job_copy()}, Ray's copy of what was submitted"
    else:
        trouble = f"would be lost: the folder of this job, {job_copy()}, is Ray's temporary copy of what was submitted"
    raise ValueError(f"{key}: '{text}' {trouble}. Write {key}=s3://bucket/prefix, or an absolute path that every node sees")
