"""Parse the command-line arguments of a program: `key=value` and `group=choice`.

The value of a text setting (a path, a name) is read literally, whatever characters it has; Hydra's grammar and sweeps do not
apply. One pair of quotes around it is removed, and `${other.key}` is interpolated. A list of texts is `[a,b]`, or a single text
without brackets. All other values follow Hydra's grammar.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from platform.engine.config.groups import choices_of_groups, groups_of
from platform.engine.config.paths import bare, hint_of

QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*)\s*(,|$)""", re.DOTALL)


class Override(NamedTuple):
    """A parsed argument."""

    key: str
    text: str
    """The override to pass to Hydra; "" if `value` is set without Hydra."""
    value: Any = None
    """The value to set after Hydra has composed, if `text` is ""."""


class OverrideError(ValueError):
    """An invalid argument; the text has one line."""


def read_overrides(schema: type, program: str, arguments: Sequence[str], unknown: Any) -> list[Override]:
    """The parsed arguments, in order. unknown: function that returns the error message about an unknown key.

    Raises OverrideError for the first invalid argument.
    """
    # A plain setting of this program may have the name of a group of another program.
    groups = {group for group in groups_of(program) if not hint_of(schema, group) or is_dataclass(bare(hint_of(schema, group)))}
    return [_read(schema, groups, text, unknown) for text in arguments]


def _read(schema: type, groups: set[str], text: str, unknown: Any) -> Override:
    if text.startswith("-"):
        raise OverrideError(
            f"there is no option '{text}'; options are --help and --show-config, settings are key=value"
            + ("; platform.tune tries several values" if text in ("-m", "--multirun") else "")
        )
    name, equals, value = text.partition("=")
    key = name.lstrip("+~")
    if name.startswith("~"):
        raise OverrideError(f"'{text}' would remove {key}, but every setting has a value: write {key}=value")
    if not equals:
        raise OverrideError(
            f"'{text}' is not key=value; "
            + (
                f"write {key}=value"
                if hint_of(schema, key) or key in groups
                else "a path or name needs the key that it is for, e.g. output=" + text
            )
        )
    if key in groups:  # in the pipeline, also model@pretrain.model
        return Override(key, text)
    below = next((group for group in groups if key and group.partition("@")[2] == key), "")
    if below and value[:1] not in ("", "{"):  # e.g. pretrain.model=vit_tiny
        return Override(below, f"{below}={value}")
    if "@" in key:
        named = [group for group in sorted(groups) if group.partition("@")[0] == key.partition("@")[0]]
        raise OverrideError(
            f"'{text}': a group is chosen as {' or '.join(named) or key.partition('@')[0]}=choice"
            + ("" if any("@" in group for group in named) else ", without '@'")
        )
    hint = hint_of(schema, key)
    if hint is None:
        if key in choices_of_groups():
            raise OverrideError(
                f"'{text}': this program has no group {key}; "
                + (f"its groups are {', '.join(sorted(groups))}" if groups else "it has none")
            )
        parts = key.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        raise OverrideError(unknown(next(each for each in above if hint_of(schema, each) is None)))
    kind = bare(hint)
    choices = value[:1] == "[" and not _is_there(schema, key)  # a sweep over a config group: space.model=[vit_small,vit_base]
    if is_dataclass(kind) and value[:1] != "{" and not choices:
        names = [item.name for item in fields(kind)]
        raise OverrideError(f"'{text}': {key} has settings of its own, e.g. {key}.{names[0]}=...: {', '.join(names)}")
    if get_origin(kind) is dict:  # keys may be added to a dict, with or without a plus
        _check(key, value)
        return Override(key, f"++{key}={value}")
    if name.startswith("+") and not name.startswith("++") and _is_there(schema, key):
        raise OverrideError(f"'{text}': {key} exists already: write {key}={value}")
    texts = get_origin(kind) is list and bare(get_args(kind)[0]) is str
    if value == "null" and (kind is str or texts):
        raise OverrideError(f"{key} cannot be null: write {key}={'[]' if texts else ''} for none, {key}=\"'null'\" for that word")
    if kind is str:
        return Override(key, "", _unquoted(value))
    if texts:
        return Override(key, "", _items(key, value))
    _check(key, value)
    return Override(key, text if _is_there(schema, key) else f"++{key}={value}")


def _is_there(schema: type, key: str) -> bool:
    """Whether the key exists in the schema; False inside a dict, to which keys are added."""
    parts = key.split(".")
    return not any(get_origin(bare(hint_of(schema, ".".join(parts[:end])))) is dict for end in range(1, len(parts)))


def _unquoted(text: str) -> str:
    found = QUOTED.fullmatch(text)
    return text if not found else re.sub(r"\\([\\'\"])", r"\1", found[1] if found[1] is not None else found[2])


def _items(key: str, text: str) -> list[str]:
    """`[a,b]` -> two texts; `a` -> one."""
    if not (text.startswith("[") and text.endswith("]")):
        if "," in text and not QUOTED.fullmatch(text):
            raise OverrideError(
                f"{key}={text}: write {key}=[{text}] for several values; one value with a comma needs quotes: {key}='\"{text}\"'"
            )
        return [_unquoted(text)]
    inner, found, at = text[1:-1], [], 0
    while inner.strip():
        item = ITEM.match(inner, at)
        if item is None:  # there is text after a closing quote
            raise OverrideError(f"{key}={text} is not a list: a value with a quote and a comma needs quotes around all of it")
        found.append(_unquoted(item[1].strip()))
        at = item.end()
        if not item[2]:
            return found
    return found


def _check(key: str, value: str) -> None:
    """Raise OverrideError, with a message in one line, for values that Hydra would reject, and for sweeps."""
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException as error:
        raise OverrideError(
            f"{key}: '{value}' is not a value ({str(error).splitlines()[0]}); write a number, true or false, "
            "[a,b] or {name:value}, and text with special characters in quotes of its own"
        ) from None
    if override.is_sweep_override():
        raise OverrideError(f"{key}={value} is several values, a run has one: write {key}=value; platform.tune tries several")
