"""Source of LUPerson as released: an LMDB of encoded images and a pickled list of its keys."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lmdb
import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.ingest.sources.items import fault_of
from platform.engine.ingest.sources.source import Candidate, ReadingPlan, in_units, limited
from platform.engine.storage.location import Location
from reidssl.data.luperson import read_keys
from reidssl.data.names import spelled


@dataclass
class LmdbSource:
    """Images in an LMDB.

    root: the folder with data.mdb, its parent folder if that folder is called lmdb, or a single LMDB file. A keys.pkl in `root`
    lists the images to read; without it, all keys are read. Every node must see the LMDB as a local path, because LMDB maps it
    into memory.
    """

    root: Location
    unit_images: int
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string()})

    def _open(self) -> Any:
        if self.root.is_s3:
            raise UserError(
                f"raw.path {self.root}: LMDB cannot be read from object storage; copy it to a disk or "
                "mount that every node sees and ingest it from there (the output may be object storage)"
            )
        nested = self.root / "lmdb"
        root = nested if (nested / "data.mdb").is_file() else self.root
        if not (root.is_file() or (root / "data.mdb").is_file()):
            raise UserError(f"raw.path {self.root} is no LMDB: expected data.mdb in it or in its folder lmdb/")
        try:
            return lmdb.open(root.path, subdir=not root.is_file(), readonly=True, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            raise UserError(f"raw.path {self.root} cannot be opened as an LMDB: {error}") from None

    def _keys(self, aside: dict[str, str]) -> list[bytes]:
        listed = self.root / "keys.pkl"
        if not self.root.is_file() and listed.is_file():
            try:
                return [key.encode("utf-8", "surrogateescape") for key in read_keys(listed.read_bytes(), aside)]
            except ValueError as error:
                raise UserError(f"{listed}: {error}") from None
        try:
            with self._open() as environment, environment.begin() as transaction, transaction.cursor() as cursor:
                names = [bytes(key) for key in cursor.iternext(values=False)]
        except lmdb.Error as error:
            raise UserError(f"raw.path {self.root}: the keys of the LMDB cannot be read: {error}") from None
        return [key for key in names if not key.startswith(b"__")]  # some tools write __len__ and __keys__

    def plan(self, limit: int) -> ReadingPlan:
        """See Source.plan. Units are lists of keys, and of candidates with an error for keys rejected already."""
        self._open().close()
        aside: dict[str, str] = {}
        items: list[Any] = limited(sorted(self._keys(aside)), limit)
        items += [Candidate(key, error=reason) for key, reason in aside.items()]
        return ReadingPlan(in_units(items, self.unit_images), len(items))

    def read(self, unit: list[Any]) -> Iterator[Candidate]:
        with self._open() as environment, environment.begin() as transaction:
            for item in unit:
                yield item if isinstance(item, Candidate) else self._one(transaction, item)

    def _one(self, transaction: Any, key: bytes) -> Candidate:
        name = spelled(key.decode("utf-8", "surrogateescape"))
        try:
            data = transaction.get(key)
        except Exception as error:  # e.g. a key that LMDB refuses, or a damaged page
            return Candidate(name, error=fault_of(self.root, error))
        if data is None:
            return Candidate(name, error="not there: listed in keys.pkl, but not in the LMDB")
        return Candidate(name, data)
