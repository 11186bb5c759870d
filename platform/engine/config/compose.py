"""Compose `configs/<program>.yaml` and the command line into one validated dataclass.

Hydra composes groups, `experiment=...` and `key=value` overrides; the dataclass of the program is the schema. All other code
uses only dataclasses: no program passes a Hydra object to the engine or the library.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from platform.engine.config.groups import CONFIG_FOLDER, ROOT, in_one_line, no_such_choice
from platform.engine.config.overrides import OverrideError, read_overrides
from platform.engine.config.paths import Role, hint_of, map_paths, mark_of, resolve
from platform.engine.errors import ConfigError
from platform.engine.secrets import is_secret_name, remember

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["CONFIG_FOLDER", "ROOT", "ConfigError", "build", "composed_values", "load_config", "to_dataclass", "to_plain"]

Schema = TypeVar("Schema")
ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)")
NO_RESULTS = {"tracking", "storage", "runtime"}
"""Sections whose settings do not change results: what they take from the environment is stored as it was written."""


def load_config(schema: type[Schema], name: str, overrides: Sequence[str] = ()) -> Schema:
    """Compose `configs/<name>.yaml` with `key=value` overrides and validate the result against the dataclass `schema`.

    Paths become absolute here and nowhere else. Raises ConfigError that names the key for unknown keys, wrong types and values
    that the dataclass rejects.
    """
    return build(schema, composed_values(schema, name, overrides))


def composed_values(schema: type, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `load_config`, but plain values of the right types that the dataclass has not validated yet. Raises ConfigError."""
    try:
        given = read_overrides(schema, name, overrides, partial(_no_such_key, schema=schema))
    except OverrideError as error:
        raise ConfigError(f"configuration: {error}") from None
    for_hydra = [each.text for each in given if each.text]
    # Every configs/<program>.yaml starts with `- schema`, which adds all keys and types of the dataclass.
    ConfigStore.instance().store(name="schema", node=schema)
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = compose(name, overrides=for_hydra)
        OmegaConf.set_struct(composed, False)
        for each in given:
            if not each.text:
                OmegaConf.update(composed, each.key, each.value, merge=False)
    except yaml.YAMLError as error:
        raise ConfigError(in_one_line(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(no_such_choice(schema, for_hydra) or _explain(error, schema)) from None
    values = _checked(schema, composed)
    try:
        return map_paths(schema, values, resolve)
    except ValueError as error:
        raise ConfigError(f"configuration: {error}") from None


def to_dataclass(schema: type[Schema], values: Any) -> Schema:
    """Check a mapping against `schema` and build the dataclass, including nested ones. Raises ConfigError."""
    return build(schema, _checked(schema, values))


def _checked(schema: type, values: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(values) if OmegaConf.is_config(values) else values
    _refuse_unknown(schema, plain)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, schema)) from None
    _remember_environment(schema, OmegaConf.to_container(merged, resolve=False), values)
    return values


def _remember_environment(schema: type, written: Any, value: Any, key: str = "") -> None:
    """Remember the texts `${oc.env:NAME}` behind values that may be secrets: they are stored in place of the values.

    Paths are no secrets, and neither are settings that change results, unless the name of the setting or the variable says so.
    """
    if isinstance(written, dict):
        for name, each in written.items():
            _remember_environment(schema, each, value[name], f"{key}.{name}" if key else str(name))
    elif isinstance(written, list):
        for each, found in zip(written, value, strict=True):
            _remember_environment(schema, each, found, key)
    elif isinstance(written, str) and isinstance(value, str) and value:
        variables, parts = ENVIRONMENT.findall(written), key.split(".")
        path = mark_of(hint_of(schema, key), Role) in (Role.INPUT, Role.OUTPUT)
        if variables and (any(map(is_secret_name, [*variables, parts[-1]])) or (NO_RESULTS & set(parts) and not path)):
            remember(value, written)
            for name in filter(is_secret_name, variables):
                remember(os.environ.get(name, value), f"${{oc.env:{name}}}")


def _refuse_unknown(schema: type, values: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first key that is not in the schema: `+key=value` can add such keys."""
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"configuration: {_no_such_key(f'{prefix}{key}', schema, prefix)}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown(hints[key], value, f"{prefix}{key}.")


def _no_such_key(key: str, schema: type, prefix: str = "") -> str:
    close = difflib.get_close_matches(key, _keys(schema, prefix), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; --help lists the keys"
    return f"there is no key '{key}'{hint}"


def build(schema: type[Schema], values: Mapping[str, Any], prefix: str = "") -> Schema:
    """Build the dataclass from values of the right types. Lists become tuples where the schema declares tuples.

    Raises ConfigError with the full key for a value that the dataclass rejects. prefix: of the keys, for messages.
    """
    arguments = {}
    for key, hint in get_type_hints(schema).items():
        value = values[key]
        _refuse_non_finite(value, f"{prefix}{key}")
        if is_dataclass(hint):
            value = build(hint, value, f"{prefix}{key}.")  # type: ignore[arg-type]
        elif get_origin(hint) is tuple and isinstance(value, list):
            if len(value) != len(get_args(hint)):
                raise ConfigError(f"configuration: {prefix}{key} must have {len(get_args(hint))} values: got {value}")
            value = tuple(value)
        arguments[key] = value
    try:
        return schema(**arguments)
    except ValueError as error:  # from __post_init__; its text begins with the name of the field
        raise ConfigError(f"configuration: {prefix}{error}") from None


def _refuse_non_finite(value: Any, key: str) -> None:
    """Raise ConfigError for infinities and NaN in a value: no setting allows them, and NaN would pass range checks."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"configuration: {key} must be a finite number: got {value}")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        _refuse_non_finite(each, f"{key}.{name}" if isinstance(value, dict) else f"{key}[{name}]")


def to_plain(config: "DataclassInstance") -> dict[str, Any]:
    """The dataclass as JSON-compatible nested dicts and lists. Before they are stored or printed, `hidden` must hide secrets."""
    return json.loads(json.dumps(asdict(config)))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"model.width": 384, ...}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _keys(schema: type, prefix: str = "") -> list[str]:
    found = []
    for name, hint in get_type_hints(schema).items():
        found += _keys(hint, f"{prefix}{name}.") if is_dataclass(hint) else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found


def _explain(error: Exception, schema: type) -> str:
    """A message in one line from the multi-line messages of Hydra and OmegaConf."""
    text = str(error).strip()
    cause = error.__cause__
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    found = re.search(r"Could not override '([^']+)'|Key '([^']+)' not in|Key '([^']+)' is not in struct", text)
    if found:
        key = key or next(group for group in found.groups() if group)
        return f"configuration: {_no_such_key(str(key), schema)}"
    unset = re.search(r"Environment variable '(\w+)' not found", text)
    if unset:
        return f"configuration: {key} needs the environment variable {unset[1]}, which is not set; set it, or give {key}="
    if key:  # Hydra's own text is only "Error merging override ..."; OmegaConf's error has the reason
        return f"configuration: {key}: {str(cause or error).strip().splitlines()[0]}"
    return f"configuration: {' '.join(text.split())}"
