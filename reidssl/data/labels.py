"""Validation of identities, cameras and splits, and numbering of names.

The rules are the same for every source. An identity or camera is a whole number from -1 to 2147483647 (int32); -1 means
unknown. A JSON value must be an integer: 1.7, 7.0, 1e3, true, null and lists are rejected. Text must be -1 or consist of digits;
leading zeros are ignored. Splits are named exactly train, query and gallery. Other names need a mapping, since it is ambiguous
whether "test" means queries or the gallery.
"""

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reidssl.data.records import SPLITS, LayoutError, LayoutWarning

LARGEST = 2**31 - 1  # the largest int32
_WHOLE = re.compile(r"-1|[0-9]+")


def whole_number(value: Any) -> int:
    """An identity or camera from a JSON value or text. Raises ValueError with the value and what is allowed."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        number = int(value) if len(value.lstrip("0")) <= 10 else LARGEST + 1  # int() raises an error for thousands of digits
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise ValueError(f"{shown(value)} is no whole number")
    if not -1 <= number <= LARGEST:
        raise ValueError(f"{shown(value)} is not in -1..{LARGEST}")
    return number


def split_name(value: Any, others: Mapping[str, str] | None = None) -> str:
    """The split of this name; `others` maps further names to splits. Raises ValueError with the value and what is allowed."""
    if isinstance(value, str):
        if value in SPLITS:
            return value
        if others and value in others:
            return others[value]
    known = ", ".join([*SPLITS, *(others or ())])
    raise ValueError(f"{shown(value)} is none of {known}; raw.splits=[test:gallery] would say what another name is")


def shown(value: Any) -> str:
    """A value as shortened text (at most 60 characters), for messages."""
    if isinstance(value, int) and abs(value) >= 10**60:
        return f"a number of {value.bit_length()} bits"  # converting it to decimal digits could take long
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def numbered(names: Iterable[str], what: str) -> dict[str, int]:
    """Name -> number. A name that is a whole number keeps it; the others get the lowest free numbers in alphabetical order.

    The result depends only on the set of names. A `LayoutWarning` is given if names were numbered. what: the kind of names in
    the plural, for messages. Raises `LayoutError` if two names are the same number, such as 7 and 007.
    """
    own: dict[int, str] = {}
    others = []
    for name in sorted(set(names)):
        number = _own_number(name)
        if number is None:
            others.append(name)
        elif number in own:
            raise LayoutError(f"two {what} have the same number, {own[number]!r} and {name!r}: rename one of them")
        else:
            own[number] = name
    free: Iterator[int] = (number for number in itertools.count() if number not in own)
    given = dict(zip(others, free, strict=False))
    if given:
        examples = ", ".join(f"{name!r} is {number}" for name, number in itertools.islice(given.items(), 3))
        warnings.warn(
            f"{len(given):,} {what} are no whole numbers up to {LARGEST} and were given the lowest free numbers "
            f"in alphabetical order: {examples}{', ...' if len(given) > 3 else ''}",
            LayoutWarning,
            stacklevel=3,
        )
    return {name: number for number, name in own.items()} | given


def _own_number(name: str) -> int | None:
    if not _WHOLE.fullmatch(name) or name == "-1":
        return None
    try:
        return whole_number(name)
    except ValueError:
        return None
