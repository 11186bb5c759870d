"""`--help`: the purpose of a program, and every setting with its value in the composed configuration."""

import ast
import inspect
import itertools
import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from platform.engine.config.compose import build, composed_values, to_plain
from platform.engine.config.groups import choices_of_groups, experiments_of, groups_of
from platform.engine.errors import ConfigError
from platform.engine.secrets import hidden

INDENT = "      "


def help_text(schema: type, name: str, doc: str, overrides: Sequence[str] = (), width: int = 0) -> str:
    """The help of a program: docstring, usage, groups, and the settings with `overrides` applied, section by section.

    Args:
        doc: docstring of the program.
        width: largest number of columns, at least 40; 0: those of the terminal.

    Raises ConfigError for invalid overrides.
    """
    width = max(40, width or shutil.get_terminal_size((100, 24)).columns)
    values = composed_values(schema, name, overrides)
    with suppress(ConfigError):  # required settings may still be missing when help is requested
        values = to_plain(build(schema, values))
    values = hidden(values)
    choices = choices_of_groups() | {"experiment": experiments_of(name, schema)}
    offered = {group: choices[group.partition("@")[0]] for group in sorted(groups_of(name))}  # model@pretrain.model: below a key
    own = {group: names for group, names in offered.items() if names}
    lines = [
        *_wrapped_doc(doc, width),
        "",
        *_wrap(f"usage: python -m platform.{name} [group=choice ...] [key=value ...]", "", width, "       "),
        *_wrap("--show-config prints the configuration in force and stops.", "       ", width),
    ]
    if own:
        lines += ["", "groups:"]
        for group, names in own.items():
            lines += _wrap(f"{group:<12} {', '.join(names)}", "  ", width, " " * 15)
    lines += ["", *_wrap("settings, with the values that they have now:", "", width)]
    return "\n".join(lines + _section(schema, values, "", width)) + "\n"


def _section(schema: type, values: dict[str, Any], prefix: str, width: int) -> list[str]:
    """Lines for the settings of a dataclass, then for each nested dataclass under its own heading."""
    hints, meanings, lines, nested = get_type_hints(schema), field_docs(schema), [], []
    for key, hint in hints.items():
        if is_dataclass(hint):
            nested.append((key, hint))
            continue
        lines += _wrap(f"{prefix}{key}={in_words(values[key])}", "  ", width, INDENT + "  ")
        lines += _wrap(meanings.get(key, ""), INDENT, width)
    for key, hint in nested:
        about = meanings.get(key) or " ".join((inspect.getdoc(hint) or "").split("\n\n")[0].split())
        lines += ["", *_wrap(f"{prefix}{key}: {about}", "", width, "  ")]
        lines += _section(hint, values[key], f"{prefix}{key}.", width)  # type: ignore[arg-type]
    return lines


def in_words(value: Any) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, str):
        own_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""  # the command line would remove them
        quote = '"' if value[:1] != '"' else "'"
        return f"{quote}{value}{quote}" if own_quotes or value == "null" else value
    if isinstance(value, list | tuple):
        return f"[{','.join(_quoted(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_quoted(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def _quoted(value: Any) -> str:
    """A value inside a list or dict, quoted if it has special characters."""
    special = isinstance(value, str) and (set(value) & set("'\"[]{},:= ") or value != value.strip())
    return '"' + value.replace('"', '\\"') + '"' if special else in_words(value)


def _wrapped_doc(doc: str, width: int) -> list[str]:
    """The docstring wrapped to `width`: paragraphs are filled; indented lines (commands, tables) are kept if they fit.

    A command that is too long is continued with backslashes.
    """
    lines: list[str] = []
    for indented, group in itertools.groupby(doc.strip().splitlines(), lambda line: line[:1] == " " if line else None):
        block = list(group)
        if indented:
            if all(len(line) <= width for line in block):
                lines += block
                continue
            for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(block)).split("\n"):  # a command of several lines is folded as one
                lines += [line] if len(line) <= width else _folded(line, width)
        else:
            lines += textwrap.wrap(" ".join(block), width, break_on_hyphens=False) or block
    return lines


def _folded(line: str, width: int) -> list[str]:
    indent, command = line[: len(line) - len(line.lstrip())], line.lstrip().startswith(("python ", "ray "))
    parts = textwrap.wrap(
        line.strip(), width - 2 * command, initial_indent=indent, subsequent_indent=f"{indent}    ", break_on_hyphens=False
    )
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:] if command else parts


def _wrap(text: str, indent: str, width: int, below: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent if below is None else below, break_on_hyphens=False
    )


@lru_cache
def field_docs(schema: type) -> dict[str, str]:
    """Field name -> docstring under the field, read from the source of a dataclass and its base classes."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(following.value.value).split())
    return found
