"""Labels of an image from the files that stand beside it in a WebDataset sample.

The files of a sample share their name up to the first dot. A `.json` holds an object of fields; a text file `<name>.<field>`
is one field, as `.cls`, the index of the class, is the identity. Pickles (`.pyd`, `.pickle`) are never opened.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reidssl.data.labels import shown, split_name, whole_number

LARGEST_SIDECAR = 1 << 20  # bytes
ROLES = ("pid", "camid", "split")
KNOWN_FIELDS = {
    "pid": ("pid", "person_id", "identity", "cls"),
    "camid": ("camid", "camera_id", "cam_id", "camera", "cam"),
    "split": ("split",),
}
_CALLED = {"pid": "identity", "camid": "camera", "split": "split"}


@dataclass(kw_only=True)
class FieldConfig:
    """Which fields of the files beside an image (.json, or text files such as .cls) are its labels."""

    pid_field: str = ""
    """Field of the identity; empty: pid, person_id, identity or cls."""
    camid_field: str = ""
    """Field of the camera; empty: camid, camera_id, cam_id, camera or cam."""
    split_field: str = ""
    """Field of the split; empty: split."""

    def names(self, role: str) -> tuple[str, ...]:
        """The fields that may hold a role out of ROLES."""
        given = getattr(self, f"{role}_field")
        return (given,) if given else KNOWN_FIELDS[role]

    @property
    def all_names(self) -> set[str]:
        return {name for role in ROLES for name in self.names(role)}


class SidecarLabels(NamedTuple):
    """What the files beside an image say."""

    pid: int = -1
    camid: int = -1
    split: str = "train"
    note: str = ""
    """Which fields exist and are not used, where there is no identity or no camera among the others."""


def suffix_of(name: str) -> str:
    """What a file's name has behind the last dot, in lower case."""
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def is_sidecar(name: str, config: FieldConfig) -> bool:
    """Whether a file is read for labels."""
    return "." in name and (suffix_of(name) == "json" or suffix_of(name) in {field.lower() for field in config.all_names})


def labels_of(
    image: str, beside: Sequence[tuple[str, bytes]], others: Sequence[str], config: FieldConfig, splits: Mapping[str, str]
) -> SidecarLabels:
    """The labels of an image.

    Args:
        image: its name.
        beside: (name, content) of the sample's files that `is_sidecar` names. Those named like the image (with or without
            its suffix) count before those named like the sample alone.
        others: suffixes of the sample's further files, for the note.
        config: the fields to look for.
        splits: other names of splits and which of train, query, gallery they are.

    Raises ValueError naming file, field and value where something is not understood or contradicts itself.
    """
    fields: dict[str, tuple[str, Any]] = {}  # field -> (file, value)
    for name, data in _own(image, beside):
        for field, value in _fields_of(name, data, config).items():
            if field in fields:
                raise ValueError(f"two files beside the image, {fields[field][0]} and {name}, have the field {field}")
            fields[field] = (name, value)
    found: dict[str, Any] = {}
    for role in ROLES:
        values = [(field, *fields[field]) for field in config.names(role) if field in fields]
        for field, name, value in values:
            try:
                parsed = split_name(value, splits) if role == "split" else whole_number(value)
            except ValueError as error:
                raise ValueError(f"{name}, {field}: {error}") from None
            if found.setdefault(role, parsed) != parsed:
                first, where, other = values[0]
                raise ValueError(
                    f"{where}, {first} is {shown(other)} and {name}, {field} is {shown(value)}: {role}_field says which counts"
                )
    return SidecarLabels(**found, note=_note(set(found), [*(set(fields) - config.all_names), *others]))


def _own(image: str, beside: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The files named like the image, else those named like the sample."""
    folder, _, base = image.rpartition("/")
    for stem in dict.fromkeys((base, base.rpartition(".")[0], base.partition(".")[0])):
        named = f"{folder}/{stem}" if folder else stem
        own = [(name, data) for name, data in beside if name.rpartition(".")[0] == named]
        if own:
            return own
    return []


def _fields_of(name: str, data: bytes, config: FieldConfig) -> dict[str, Any]:
    if suffix_of(name) != "json":
        text = data.decode("utf-8", "replace").strip()
        field = next(field for field in config.all_names if field.lower() == suffix_of(name))
        return {field: text}
    try:
        values = json.loads(data, object_pairs_hook=_once(config.all_names))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {str(error)[:120]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds {shown(values)}; an object of fields is expected")
    return values


def _once(names: set[str]) -> Any:
    """JSON lets a field stand twice in an object, and parsers keep the last."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            counts = [name for name, _ in pairs]
            repeated = [name for name in values if name in names and counts.count(name) > 1]
            if repeated:
                raise ValueError(f"the field {repeated[0]} stands there twice")
        return values

    return build


def _note(found: set[str], unused: Sequence[str]) -> str:
    missing = [role for role in ROLES[:2] if role not in found]
    if not missing or not unused:
        return ""
    names = sorted(name.encode("utf-8", "backslashreplace").decode()[:40] for name in unused)
    return (
        f"no {' and no '.join(_CALLED[role] for role in missing)}, while these are not used: {', '.join(names[:12])}"
        f"{', ...' if len(names) > 12 else ''} ({' and '.join(f'raw.tar.{role}_field' for role in missing)} can name one)"
    )
