"""Passwords, tokens and keys: recognized in texts and settings, and hidden wherever they would be printed or stored.

Programs use secrets (an MLflow address with a password, keys in the environment), but no log, configuration, checkpoint or report
contains one. What counts as a secret:

- the user part of a URI: http://user:password@host
- the value behind a name such as password, secret, token or api_key: in a setting, a query of a URI, or `name=value` in a text
- the value of an environment variable with such a name
- a text setting of `tracking`, `storage` or `runtime` that was given as ${oc.env:NAME}; it is stored as this text

The stored form does not depend on the secret: a run that continues with a new password has the same stored configuration.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters; shorter values of environment variables ("1", "true") would hide ordinary words
_WORDS = r"(?:password|passwd|pwd|secret|token|credentials?|signature|authorization|(?:api|access|private|secret|auth)[_-]?key)"
# A user part ends at the last '@' before the path. Behind a colon that begins no port, it may contain slashes.
_USER = re.compile(r"(?<=://)(?:[^\s/?#'\"]+|[^\s/?#@:'\"]*:(?!\d+(?:[/?#\s]|$))[^\s@'\"]+)@")
_NAMED = re.compile(rf"(?i)(?<![a-z])((?:[\w.-]*[_.-])?{_WORDS}['\"]?\s*[=:]\s*['\"]?)((?:basic|bearer)\s+)?[^\s'\"&;,)}}\]]+")
_SECRET_NAME = re.compile(rf"(?i)(?:.*[_.-])?(?:{_WORDS}|pw|pass|key|auth)")

_from_environment: dict[str, str] = {}


def is_secret_name(name: str) -> bool:
    """Whether a setting or an environment variable with this name holds a secret: `MLFLOW_TRACKING_PASSWORD`, `api_key`."""
    return _SECRET_NAME.fullmatch(name) is not None


def hide(text: str) -> str:
    """The text, to be printed, with `***` or `${oc.env:NAME}` in place of every secret in it."""
    for value, written in _from_environment.items():
        if len(value) >= SHORTEST:
            text = text.replace(value, written)
    return _hide(text)


def _hide(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and is_secret_name(name) and not os.path.exists(value):  # PWD is a folder
            text = text.replace(value, HIDDEN)
    return _NAMED.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def hidden(values: Any, name: str = "") -> Any:
    """Plain data (nested dicts and lists) with every secret in its texts hidden, for storing or printing.

    name: the key of `values`; the text of a key such as `password` is hidden as a whole.
    """
    if isinstance(values, Mapping):
        return {key: hidden(value, str(key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [hidden(value, name) for value in values]
    if not isinstance(values, str) or not values:
        return values
    written = _from_environment.get(values)
    return HIDDEN if is_secret_name(name) and not written else _hide(written or values)


def remember(value: str, written: str) -> None:
    """Store `written`, e.g. "${oc.env:NAME}", in place of a setting that is exactly `value`; print it in place of `value`."""
    _from_environment[value] = written


def remembered() -> dict[str, str]:
    """What `remember` was told, to be passed to another process. It holds the secrets themselves."""
    return dict(_from_environment)


def take_over(known: Mapping[str, str]) -> None:
    """Remember what another process remembered."""
    _from_environment.update(known)
