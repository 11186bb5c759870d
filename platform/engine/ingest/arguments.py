"""The arguments of an ingest: what determines its shards, and how those of two ingests differ."""

from collections.abc import Mapping
from typing import Any

from platform.engine.config.compose import flat
from platform.engine.config.paths import map_paths, same_place
from platform.engine.ingest.sources import RawConfig
from platform.engine.schemas.ingest_settings import IngestConfig
from platform.engine.secrets import hidden


def arguments_of(config: IngestConfig) -> dict[str, Any]:
    """All settings that determine the shards, as JSON-compatible values without secrets."""
    names = ("limit", "shard_mb", "row_group_rows", "max_pixels", "resume_units")
    return {"raw": hidden(config.raw.arguments())} | {name: getattr(config, name) for name in names}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The arguments that differ, as "limit was 3, now 4"; "" if none does. Two spellings of one place are equal."""
    before, now = flat(old), flat(new)
    places = flat(_with_places(old)), flat(_with_places(new))
    return ", ".join(
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if places[0].get(key) != places[1].get(key)
    )


def _with_places(arguments: Mapping[str, Any]) -> dict[str, Any]:
    raw = map_paths(RawConfig, arguments.get("raw", {}), lambda text, key, role: same_place(text))
    return {**arguments, "raw": raw}
