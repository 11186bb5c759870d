"""The names of all options are frozen, because users' commands and stored configurations contain them.

python -m tests.platform.engine.config.test_options    # rewrites options.txt; describe the change in CHANGELOG.md
"""

from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

from platform.engine.schemas import SCHEMAS, schema_of

FROZEN = Path(__file__).with_name("options.txt")
RENEW = "if that is meant: python -m tests.platform.engine.config.test_options, and a line in CHANGELOG.md"


def keys_of(schema: type, prefix: str) -> list[str]:
    return [
        key
        for name, hint in get_type_hints(schema).items()
        for key in (keys_of(hint, f"{prefix}{name}.") if is_dataclass(hint) else [f"{prefix}{name}"])
    ]


def options() -> list[str]:
    """Lines `program key` of all options, sorted."""
    return sorted(key for program in SCHEMAS for key in keys_of(schema_of(program), f"{program} "))


def test_options_are_added_renamed_and_removed_on_purpose():
    frozen, present = FROZEN.read_text(encoding="utf-8").splitlines(), options()
    new, gone = sorted(set(present) - set(frozen)), sorted(set(frozen) - set(present))
    assert not new and not gone, f"new options: {new}; gone: {gone}; {RENEW}"
    assert frozen == present


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{line}\n" for line in options()), encoding="utf-8")
