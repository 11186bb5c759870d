"""JSON files that one program leaves for another. Users point at the wrong folder: what is read is checked first."""

from typing import Any

from platform.engine.errors import UserError
from platform.engine.storage.location import Location


def read_record(file: Location, key: str, kind: type, advice: str) -> dict[str, Any]:
    """The JSON object in `file`, which has a value of type `kind` at `key`.

    Raises StorageError if there is no JSON, and UserError saying what is there instead, with `advice`, for any other content.
    """
    values = file.read_json()
    if not isinstance(values, dict):
        raise UserError(f"{file.uri} holds a {type(values).__name__} where an object with '{key}' belongs: {advice}")
    if not isinstance(values.get(key), kind):
        found = ", ".join(sorted(values)[:8]) or "nothing"
        kind_found = f"its '{key}' is of type {type(values.get(key)).__name__}"
        wrong = kind_found if key in values else f"it has no '{key}' (it has: {found})"
        raise UserError(f"{file.uri} is not what belongs there, {wrong}: {advice}")
    return values
