"""Image files below a folder or prefix, labelled by one of the library's indexers."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.sources.base import Candidate, Plan, in_units, limited
from platform.engine.storage import Location, NotFoundError
from reidssl.data.records import LayoutWarning, Record

Indexer = Callable[[Sequence[str], Callable[[str], str]], list[Record]]


@dataclass
class FileSource:
    """See the module's docstring. `index`: an `index` function of reidssl.data."""

    root: Location
    index: Indexer
    unit_images: int
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string()})

    def plan(self, limit: int) -> Plan:
        if self.root.is_file():
            raise UserError(f"source.path {self.root} is a file; this kind of source wants the folder with the images")
        names = [item.name for item in self.root.list()]
        if not names:
            raise UserError(f"source.path {self.root} does not exist or holds no files")
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", LayoutWarning)
            try:
                records = self.index(names, lambda name: self.root.joinpath(name).read_text())
            except ValueError as error:
                raise UserError(f"source.path {self.root}: {error}") from None
        from platform.engine.runtime import say  # brings Ray, which settings are read without

        for remark in remarks:
            if issubclass(remark.category, LayoutWarning):
                say(f"note: {remark.message}")
        records = limited(records, limit)
        return Plan(in_units(records, self.unit_images), len(records))

    def read(self, unit: list[Record]) -> Iterator[Candidate]:
        def load(record: Record) -> Candidate:
            try:
                data = self.root.joinpath(record.key).read_bytes()
            except NotFoundError:
                return Candidate(record.key, error="listed, but the file does not exist")
            return Candidate(record.key, data, record.pid, record.camid, record.split)

        with ThreadPoolExecutor(8) as pool:  # loose objects are bound by the latency of requests
            for start in range(0, len(unit), 32):
                yield from pool.map(load, unit[start : start + 32])
