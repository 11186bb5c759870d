"""An ingest in rounds of units. A finished round is recorded, so that an interrupted ingest continues with the missing rounds.

    <output>/ingest-rounds/00012.json    the shards and the counts of a round; removed when the data set is complete

A record counts if it was made with the same arguments and the same units, and its shards are still there. Files that no record
names are removed. The content of the source is taken to be unchanged.
"""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from platform.engine.data.shards import FileEntry
from platform.engine.errors import StorageError
from platform.engine.ingest.sources.source import in_units
from platform.engine.ingest.tasks import Written, joined
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently

ROUNDS = "ingest-rounds"


class Rounds:
    """The rounds of an ingest.

    Args:
        output: where the shards go.
        arguments: all settings that determine the content.
        units: of the whole source, in order.
        size: units in a round.
    """

    def __init__(self, output: Location, arguments: Mapping[str, Any], units: Sequence[Any], size: int) -> None:
        self.output = output
        self.units = in_units(list(units), size)
        settings = json.dumps(arguments, sort_keys=True).encode()
        self.marks = [hashlib.sha256(settings + pickle.dumps(part)).hexdigest() for part in self.units]
        self.done: dict[int, Written] = {}

    def find(self) -> None:
        """Read the records of an interrupted ingest into `done`."""
        if len(self.units) > 1:
            sizes = {item.name: item.bytes for item in self.output.list(recursive=False)}
            for number in range(len(self.units)):
                found = self._recorded(number)
                if found is not None and all(sizes.get(entry.name) == entry.bytes for entry in found.entries):
                    self.done[number] = found
        if self.done:
            rows = sum(entry.rows for found in self.done.values() for entry in found.entries)
            say(f"continues an interrupted ingest: {len(self.done):,} of {len(self.units):,} rounds are there, {rows:,} images")

    def kept(self) -> set[str]:
        """Names of the shards of `done`."""
        return {entry.name for found in self.done.values() for entry in found.entries}

    def run(self, write: Callable[[list[Any]], Written]) -> Written:
        """The results of all rounds, in order; `write` reads and writes the units of a missing one."""
        for number, units in enumerate(self.units):
            if number not in self.done:
                self.done[number] = write(units)
                if len(self.units) > 1:
                    record = _to_json(self.done[number]) | {"mark": self.marks[number]}
                    patiently(partial(self._file(number).write_json, record), self.output.config.retry_timeout_s, say)
        return joined([self.done[number] for number in range(len(self.units))])

    def forget(self) -> None:
        """Remove all records."""
        self.output.joinpath(ROUNDS).delete()

    def _file(self, number: int) -> Location:
        return self.output.joinpath(ROUNDS, f"{number:05d}.json")

    def _recorded(self, number: int) -> Written | None:
        """The result of a round; None if its record is missing, torn or of another version, so that the round is done again."""
        try:
            values = patiently(self._file(number).read_json, self.output.config.retry_timeout_s)
            return _from_json(values) if values["mark"] == self.marks[number] else None
        except StorageError as error:
            if error.transient:
                raise
        except (KeyError, TypeError, ValueError):
            pass
        return None


def _to_json(written: Written) -> dict[str, Any]:
    counts = {name: dict(getattr(written, name)) for name in ("splits", "converted", "labels")}
    return {"entries": [asdict(entry) for entry in written.entries], "rejected": written.rejected} | counts


def _from_json(values: Mapping[str, Any]) -> Written:
    return Written(
        [FileEntry(**entry) for entry in values["entries"]],
        [(str(key), str(reason)) for key, reason in values["rejected"]],
        *(Counter(values[name]) for name in ("splits", "converted", "labels")),
    )
