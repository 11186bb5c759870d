"""From `configs/<program>.yaml` and the command line to one validated dataclass.

Hydra composes (groups, `experiment=...`, `key=value` overrides); the program's dataclass is the schema. Below this
edge there are only dataclasses: no program hands a Hydra object to the engine or the library.
"""

import difflib
import importlib
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from platform.engine.errors import UserError
from platform.engine.groups import CONFIG_FOLDER, ROOT, choices_of_groups, groups_of, no_such_choice, split_groups

__all__ = ["CONFIG_FOLDER", "ROOT", "ConfigError", "help_text", "load_config", "run_program", "to_dataclass", "to_plain"]

Schema = TypeVar("Schema")


class ConfigError(UserError):
    """A key that does not exist or a value that cannot be."""


def load_config(schema: type[Schema], name: str, overrides: Sequence[str] = ()) -> Schema:
    """Compose `configs/<name>.yaml` with `key=value` overrides and validate it against the dataclass `schema`.

    Raises ConfigError naming the key for unknown keys, wrong types and values refused by the dataclass.
    """
    groups, paths = split_groups(schema, overrides)
    # Every configs/<program>.yaml begins with `- schema`: the dataclass gives it all keys and their types.
    ConfigStore.instance().store(name="schema", node=schema)
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = compose(name, overrides=groups)
        OmegaConf.set_struct(composed, False)
        for text in paths:
            OmegaConf.update(composed, *_parse(text))
        return to_dataclass(schema, composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(no_such_choice(schema, groups) or _explain(error, schema)) from None


def _parse(text: str) -> tuple[str, Any]:
    """(key, value) of `key=value` by Hydra's grammar. Raises ConfigError."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(f"configuration: {text} is not key=value ({str(error).splitlines()[0]}); a value with special "
                          "characters needs quotes of its own: \"key='value'\"") from None
    if override.is_delete() or override.is_sweep_override():
        raise ConfigError(f"configuration: {text} is not one value; write {override.key_or_group}=value")
    return override.key_or_group, override.value()


def to_dataclass(schema: type[Schema], values: Any) -> Schema:
    """Check a mapping against `schema` and build the dataclass, nested ones included. Raises ConfigError."""
    plain = OmegaConf.to_container(values) if OmegaConf.is_config(values) else values
    _refuse_unknown(schema, plain)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        checked = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, schema)) from None
    return _build(schema, checked)  # type: ignore[arg-type]


def _refuse_unknown(schema: type, values: Any, prefix: str = "") -> None:
    """`+key=value` adds keys behind the schema's back; ConfigError for the first that is not in it."""
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(_no_such_key(f"{prefix}{key}", schema, prefix))
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown(hints[key], value, f"{prefix}{key}.")  # type: ignore[arg-type]


def _no_such_key(key: str, schema: type, prefix: str = "") -> str:
    close = difflib.get_close_matches(key, _keys(schema, prefix), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; --help lists the keys"
    return f"configuration: there is no key '{key}'{hint}"


def _build(schema: type[Schema], values: Mapping[str, Any], prefix: str = "") -> Schema:
    """The dataclass out of values of the right types: declared tuples become tuples, refusals get the full key."""
    arguments = {}
    for key, hint in get_type_hints(schema).items():
        value = values[key]
        _refuse_non_finite(value, f"{prefix}{key}")
        if is_dataclass(hint):
            value = _build(hint, value, f"{prefix}{key}.")  # type: ignore[arg-type]
        elif get_origin(hint) is tuple and isinstance(value, list):
            if len(value) != len(get_args(hint)):
                raise ConfigError(f"configuration: {prefix}{key} must have {len(get_args(hint))} values: got {value}")
            value = tuple(value)
        arguments[key] = value
    try:
        return schema(**arguments)
    except ValueError as error:  # from __post_init__; begins with the field's name
        raise ConfigError(f"configuration: {prefix}{error}") from None


def _refuse_non_finite(value: Any, key: str) -> None:
    """No setting is unlimited by an infinity, and a NaN passes every comparison that a dataclass makes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"configuration: {key} must be a finite number: got {value}")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        _refuse_non_finite(each, f"{key}.{name}" if isinstance(value, dict) else f"{key}[{name}]")


def to_plain(config: Any) -> dict[str, Any]:
    """The dataclass as JSON-compatible nested dicts and lists (what is stored beside a run)."""
    return json.loads(json.dumps(asdict(config)))


def run_program(name: str) -> None:
    """The `__main__` of every program: `--help`, `--show-config`, overrides, and errors a user can read.

    Calls `platform.<name>.main(config)`, whose annotation is the schema. The module is imported under its own name: what
    is pickled to Ray workers must not belong to `__main__`, which they do not have.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    module = importlib.import_module(f"platform.{name}")
    schema = get_type_hints(module.main)["config"]
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text(schema, name, module.__doc__))
        return
    show = "--show-config" in arguments
    try:
        config = load_config(schema, name, [a for a in arguments if a != "--show-config"])
        if show:
            print(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))), end="")
        else:
            module.main(config)
    except UserError as error:
        print(f"error: {error}" if error.status == 2 else str(error), file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def help_text(schema: type, name: str, doc: str | None) -> str:
    """Docstring, usage, config groups and every option with its default and meaning."""
    own = groups_of(name)
    lines = [(doc or "").strip(), "", f"usage: python -m platform.{name} [group=choice ...] [key=value ...]",
             "       --show-config prints the resolved configuration and stops", "", "groups:"]
    lines += [f"  {group:<12} {', '.join(choices)}" for group, choices in choices_of_groups().items() if group in own]
    lines += ["", "options (defaults of the schema; configs/ may set others):"]
    lines += [f"  {key:<44} {text}" for key, text in _options(schema)]
    return "\n".join(lines)


def _options(schema: type, prefix: str = "") -> list[tuple[str, str]]:
    hints, meanings, rows = get_type_hints(schema), _field_docs(schema), []
    for field in fields(schema):
        kind = hints[field.name]
        if is_dataclass(kind):
            rows += _options(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            continue
        if field.default is not MISSING:
            default = field.default
        else:
            default = field.default_factory() if field.default_factory is not MISSING else "required"
        rows.append((f"{prefix}{field.name}={default}", meanings.get(field.name, "")))
    return rows


def _field_docs(schema: type) -> dict[str, str]:
    """Docstrings written under the fields of a dataclass, read from its source."""
    import ast
    import inspect
    import textwrap

    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
                    and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
                found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def _keys(schema: type, prefix: str = "") -> list[str]:
    return [key.split("=", 1)[0] for key, _ in _options(schema, prefix)]


def _explain(error: Exception, schema: type) -> str:
    """One clear paragraph out of Hydra's and OmegaConf's multi-line messages."""
    text = str(error).strip()
    cause = error.__cause__
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    found = re.search(r"Could not override '([^']+)'|Key '([^']+)' not in|Key '([^']+)' is not in struct", text)
    if found:
        key = key or next(group for group in found.groups() if group)
        return _no_such_key(str(key), schema)
    unset = re.search(r"Environment variable '(\w+)' not found", text)
    if unset:
        return f"configuration: {key} needs the environment variable {unset[1]}, which is not set; set it, or give {key}="
    if key:  # Hydra's own text is "Error merging override ..."; what was wrong is in OmegaConf's
        return f"configuration: {key}: {str(cause or error).strip().splitlines()[0]}"
    return f"configuration: {' '.join(text.split())}"
