"""Source of image files below a folder or prefix, labeled by one of the indexers of reidssl.data."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.ingest.sources.items import Listing, fault_of, list_items, not_taken, read_item, unreached
from platform.engine.ingest.sources.source import ARCHIVES, OTHER_IMAGES, Candidate, ReadingPlan, in_units
from platform.engine.storage.location import Location
from reidssl.data.names import unspelled
from reidssl.data.records import IMAGE_SUFFIXES, LayoutWarning, Record, is_image

Indexer = Callable[..., list[Record]]


@dataclass
class FileSource:
    """Image files below `root`. index: an `index` function of reidssl.data, which finds the labels from the paths."""

    root: Location
    index: Indexer
    unit_images: int
    follow_links: bool = False
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string()})

    def plan(self, limit: int) -> ReadingPlan:
        """See Source.plan. Units are lists of records, and of candidates with an error for files rejected already."""
        from platform.engine.runtime.terminal import say

        if self.root.is_file():
            raise UserError(f"raw.path {self.root} is a file; this kind of source wants the folder with the images")
        listing = list_items(self.root, self.follow_links)
        if not listing.names and not listing.aside:
            raise UserError(f"raw.path {self.root} does not exist or holds no files")
        aside: dict[str, str] = {}
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", LayoutWarning)
            try:
                records = self.index(listing.names, lambda name: self.root.joinpath(unspelled(name)).read_text(), aside=aside)
            except ValueError as error:
                raise UserError(f"raw.path {self.root}: {error}{_unreadable(listing)}") from None
        for remark in remarks:
            if issubclass(remark.category, LayoutWarning):
                say(f"note: {remark.message}")
        if others := not_taken(listing.names, (*OTHER_IMAGES, *ARCHIVES), IMAGE_SUFFIXES):
            say(f"note: {others}")
        aside |= unreached(listing.aside) | {name: reason for name, reason in listing.aside.items() if is_image(name)}
        items: list[Any] = list(records)
        if aside:
            items += [Candidate(key, error=reason) for key, reason in aside.items()]
            items.sort(key=lambda item: item.key)
        items = up_to(items, limit)
        return ReadingPlan(in_units(items, self.unit_images), len(items))

    def read(self, unit: list[Any]) -> Iterator[Candidate]:
        def load(item: Any) -> Candidate:
            if isinstance(item, Candidate):
                return item
            try:
                return Candidate(item.key, read_item(self.root, item.key), item.pid, item.camid, item.split)
            except Exception as error:
                return Candidate(item.key, error=fault_of(self.root, error))

        with ThreadPoolExecutor(8) as pool:  # reading single objects is limited by the latency of requests
            for start in range(0, len(unit), 32):
                yield from pool.map(load, unit[start : start + 32])


def up_to(items: list[Any], limit: int) -> list[Any]:
    """The items up to image number `limit` (0: all items). Rejected items among them do not count."""
    seen = 0
    for index, item in enumerate(items):
        seen += not isinstance(item, Candidate)
        if limit and seen == limit:
            return items[: index + 1]
    return items


def _unreadable(listing: Listing) -> str:
    if not listing.aside:
        return ""
    name, reason = next(iter(listing.aside.items()))
    return f" {len(listing.aside):,} further entries are no files that can be read, such as {name}: {reason}."
