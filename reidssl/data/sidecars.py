"""Labels of an image from the files beside it in a WebDataset sample (sidecar files).

The files of a sample share their name up to the first dot. A `.json` file holds an object of fields. A text file
`<name>.<field>` holds one field; for example, `.cls` (the class index) is the identity. Pickles (`.pyd`, `.pickle`) are never
opened.
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
    """Names of the fields with the labels, in files beside an image (.json, or text files such as .cls)."""

    pid_field: str = ""
    """Field with the identity. Empty: pid, person_id, identity or cls."""
    camid_field: str = ""
    """Field with the camera. Empty: camid, camera_id, cam_id, camera or cam."""
    split_field: str = ""
    """Field with the split. Empty: split."""

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the fields that may hold the label `role`, one of ROLES."""
        given = getattr(self, f"{role}_field")
        return (given,) if given else KNOWN_FIELDS[role]

    @property
    def all_names(self) -> set[str]:
        return {name for role in ROLES for name in self.names(role)}


class SidecarLabels(NamedTuple):
    """Labels of an image from the files beside it: identity and camera (-1: unknown), and split."""

    pid: int = -1
    camid: int = -1
    split: str = "train"
    note: str = ""
    """Message with the unused fields if the identity or the camera is missing, else ""."""


def suffix_of(name: str) -> str:
    """The part of a file name after the last dot, in lower case."""
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def is_sidecar(name: str, config: FieldConfig) -> bool:
    """Whether a file of this name is read for labels: a .json file, or a text file named after one of the fields."""
    return "." in name and (suffix_of(name) == "json" or suffix_of(name) in {field.lower() for field in config.all_names})


def labels_of(
    image: str, beside: Sequence[tuple[str, bytes]], others: Sequence[str], config: FieldConfig, splits: Mapping[str, str]
) -> SidecarLabels:
    """The labels of an image.

    Args:
        image: name of the image.
        beside: (name, content) of the files of the sample for which `is_sidecar` is true. Files named like the image (with or
            without its suffix) take precedence over files that share only the name of the sample.
        others: suffixes of the other files of the sample, for the note.
        config: the fields to look for.
        splits: further names of splits -> train, query or gallery.

    Raises ValueError with file, field and value for an invalid value and for contradictory values.
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
    """The files named like the image (with or without its suffix), or if there are none, those named like the sample."""
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
    """A JSON object hook that raises ValueError if one of `names` occurs twice in an object.

    JSON permits repeated fields, and parsers silently keep the last one.
    """

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
