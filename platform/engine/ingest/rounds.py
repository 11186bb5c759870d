"""An ingest in rounds of units. A finished round is recorded, so that an interrupted ingest continues with the missing rounds.

    <output>/ingest-rounds/arguments.json    the arguments of the ingest
    <output>/ingest-rounds/00012.json        the shards and the counts of a round
                                             all are removed when the data set is complete

Rounds of other arguments are never thrown away unasked. A record counts if it was made of the same units and its shards are still
there. Files that no record names are removed. The content of the source is taken to be unchanged.
"""

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from platform.engine.data.shards import FileEntry
from platform.engine.errors import UserError
from platform.engine.ingest.arguments import differences
from platform.engine.ingest.sources.source import in_units
from platform.engine.ingest.tasks import Written, joined
from platform.engine.runs.json_records import value_in
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently

ROUNDS = "ingest-rounds"
ARGUMENTS = "arguments.json"


def unfinished(output: Location, arguments: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Whether `output` holds finished rounds of an interrupted ingest with these arguments.

    Raises UserError if it holds rounds of other arguments, unless they may be overwritten.
    """
    folder = output.joinpath(ROUNDS)
    names = {item.name for item in folder.list(recursive=False)}
    finished = len(names - {ARGUMENTS})
    if not finished:
        return False
    stored = value_in(folder.joinpath(ARGUMENTS))
    if isinstance(stored, dict):
        changed = differences(stored, arguments)
        if not changed:
            return True
        reason, advice = f"with other arguments ({changed})", "Repeat the old settings to continue it, choose"
    else:
        reason, advice = "with unknown arguments, such as by an older version", "Choose"
    if overwrite:
        return False
    raise UserError(
        f"{output} holds an interrupted ingest made {reason}; it has {finished:,} finished round{'s' * (finished != 1)}. "
        f"{advice} another output, or set overwrite=true to begin anew"
    )


class Rounds:
    """The rounds of an ingest.

    Args:
        output: where the shards go.
        arguments: all settings that determine the content and the units.
        units: of the whole source, in order.
        size: units in a round.
    """

    def __init__(self, output: Location, arguments: Mapping[str, Any], units: Sequence[Any], size: int) -> None:
        self.output = output
        self.arguments = arguments
        self.units = in_units(list(units), size)
        self.marks = [hashlib.sha256(pickle.dumps(part)).hexdigest() for part in self.units]
        self.done: dict[int, Written] = {}

    def find(self, overwrite: bool = False) -> None:
        """Read the records of an interrupted ingest into `done`; `overwrite` passes over those of other arguments.

        Raises UserError if there are rounds of other arguments otherwise.
        """
        if not unfinished(self.output, self.arguments, overwrite):
            return
        sizes = {item.name: item.bytes for item in self.output.list(recursive=False)}
        for number in range(len(self.units)):
            found = self._recorded(number)
            if found is not None and all(sizes.get(entry.name) == entry.bytes for entry in found.entries):
                self.done[number] = found
        lost = len(self.output.joinpath(ROUNDS).list(recursive=False)) - 1 - len(self.done)
        if lost:
            say(f"note: {lost:,} finished rounds of an interrupted ingest do not fit the source or their shards: done again")
        if self.done:
            rows = sum(entry.rows for found in self.done.values() for entry in found.entries)
            say(f"continues an interrupted ingest: {len(self.done):,} of {len(self.units):,} rounds are there, {rows:,} images")

    def kept(self) -> set[str]:
        """Names of the shards of `done`."""
        return {entry.name for found in self.done.values() for entry in found.entries}

    def run(self, write: Callable[[list[Any]], Written]) -> Written:
        """The results of all rounds, in order; `write` reads and writes the units of a missing one."""
        if not self.done:
            self.forget()  # what an overwritten ingest has left
            if len(self.units) > 1:
                self._store(ARGUMENTS, dict(self.arguments))
        for number, units in enumerate(self.units):
            if number not in self.done:
                self.done[number] = write(units)
                if len(self.units) > 1:
                    self._store(_name(number), _to_json(self.done[number]) | {"mark": self.marks[number]})
        return joined([self.done[number] for number in range(len(self.units))])

    def forget(self) -> None:
        """Remove all records."""
        self.output.joinpath(ROUNDS).delete()

    def _store(self, name: str, record: dict[str, Any]) -> None:
        file = self.output.joinpath(ROUNDS, name)
        patiently(partial(file.write_json, record), self.output.config.retry_timeout_s, say)

    def _recorded(self, number: int) -> Written | None:
        """The result of a round; None if its record is missing, torn or of another version, so that the round is done again."""
        values = value_in(self.output.joinpath(ROUNDS, _name(number)))
        try:
            return _from_json(values) if values["mark"] == self.marks[number] else None
        except (KeyError, TypeError, ValueError):
            return None


def _name(number: int) -> str:
    return f"{number:05d}.json"


def _to_json(written: Written) -> dict[str, Any]:
    counts = {name: dict(getattr(written, name)) for name in ("splits", "converted", "labels")}
    return {"entries": [asdict(entry) for entry in written.entries], "rejected": written.rejected} | counts


def _from_json(values: Mapping[str, Any]) -> Written:
    return Written(
        [FileEntry(**entry) for entry in values["entries"]],
        [(str(key), str(reason)) for key, reason in values["rejected"]],
        *(Counter(values[name]) for name in ("splits", "converted", "labels")),
    )
