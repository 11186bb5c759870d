"""WebDataset-style tars, read as streams; members are never extracted to disk."""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.sources.base import LARGEST_IMAGE, Candidate, Plan
from platform.engine.storage import Location
from reidssl.data.records import IMAGE_SUFFIXES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass
class TarSource:
    """`root`: a tar or a folder with tars; one unit each.

    Key: the tar's path without .tar, then the member's path. Labels: `pid`, `camid` and `split` in a .json of the
    same stem that stands beside the image.
    """

    root: Location
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string()})

    def plan(self, limit: int) -> Plan:
        """One unit per tar: (name or "" for the root itself, most images to take or 0)."""
        single = self.root.is_file()
        names = [""] if single else [i.name for i in self.root.list() if i.name.endswith(TAR_SUFFIXES)]
        if not names:
            raise UserError(f"source.path {self.root} holds no tar files (*.tar, *.tar.gz, *.tgz)")
        if not limit:
            return Plan([(name, 0) for name in names], None)
        units, left = [], limit
        for name in names:  # a limited trial counts the images of its first tars
            found = sum(1 for _ in islice(self._images(name), left))
            units.append((name, found))
            left -= found
            if left <= 0:
                break
        return Plan([unit for unit in units if unit[1]], limit - left)

    def read(self, unit: tuple[str, int]) -> Iterator[Candidate]:
        name, most = unit
        return islice(self._images(name), most or None)

    def _images(self, name: str) -> Iterator[Candidate]:
        location = self.root.joinpath(name) if name else self.root
        prefix = name or self.root.name
        for suffix in TAR_SUFFIXES:
            prefix = prefix.removesuffix(suffix)
        group: list[tuple[str, bytes, str]] = []
        stem = None
        try:
            with location.open_input() as file, tarfile.open(fileobj=file, mode="r|*") as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    if not member.isfile() or not base.lower().endswith((*IMAGE_SUFFIXES, ".json")):
                        continue
                    if (folder, base.partition(".")[0]) != stem:
                        yield from _labelled(group, prefix)
                        group, stem = [], (folder, base.partition(".")[0])
                    group.append(_member(tar, member))
        except (tarfile.TarError, EOFError, OSError) as error:
            yield from _labelled(group, prefix)
            yield Candidate(f"{prefix}/", error=f"the tar is damaged from here on: {error}")
            return
        yield from _labelled(group, prefix)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, bytes, str]:
    """(name, content, error) of a member; the content is not read when the name or the size is out of bounds."""
    parts = member.name.removeprefix("./").split("/")
    if member.name.startswith("/") or ".." in parts:
        return posixpath.basename(member.name), b"", f"the name leads out of the tar: {member.name!r}"
    name = "/".join(parts)
    if member.size > LARGEST_IMAGE:
        return name, b"", f"{member.size:,} bytes are too many for a person image"
    opened = tar.extractfile(member)
    return name, opened.read() if opened else b"", ""


def _labelled(group: list[tuple[str, bytes, str]], prefix: str) -> Iterator[Candidate]:
    """The images of one WebDataset sample with the labels of its .json."""
    labels, problem = {"pid": -1, "camid": -1, "split": "train"}, ""
    for name, data, _ in group:
        if name.lower().endswith(".json"):
            try:
                values = json.loads(data)
                labels |= {"pid": int(values.get("pid", -1)), "camid": int(values.get("camid", -1)),
                           "split": str(values.get("split", "train"))}
            except (ValueError, AttributeError, TypeError) as error:
                problem = f"labels in {name} cannot be read: {error}"
    for name, data, reason in group:
        if not name.lower().endswith(".json"):
            yield Candidate(f"{prefix}/{name}", data, error=reason or problem, **labels)  # type: ignore[arg-type]
