"""Read JSON files that one program writes for another. The content is checked, because users may name a wrong folder."""

from typing import Any

from platform.engine.errors import StorageError, UserError
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently


def read_record(file: Location, key: str, kind: type, advice: str) -> dict[str, Any]:
    """The JSON object in `file`, which must have a value of type `kind` at `key`.

    Raises StorageError if the file cannot be read as JSON. Raises UserError, with the found content and `advice`, if it holds
    anything else.
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


def value_in(file: Location) -> Any:
    """The value in a JSON file that may be missing or torn: None then. Raises StorageError if storage fails for long."""
    try:
        return patiently(file.read_json, file.config.retry_timeout_s)
    except StorageError as error:
        if error.transient:
            raise
        return None
