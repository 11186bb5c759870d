"""Source of WebDataset-style tars. They are read as streams; members are never extracted to disk."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.ingest.sources.items import fault_of, folders_of, list_items, not_taken, open_item, unreached
from platform.engine.ingest.sources.source import ARCHIVES, LARGEST_IMAGE, OTHER_ARCHIVES, OTHER_IMAGES, Candidate, ReadingPlan
from platform.engine.ingest.sources.tar_stream import DAMAGE, TAR_SUFFIXES, open_tar, without_suffix
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from reidssl.data.names import spelled
from reidssl.data.records import IMAGE_SUFFIXES
from reidssl.data.sidecars import LARGEST_SIDECAR, FieldConfig, SidecarLabels, is_sidecar, labels_of, suffix_of

FOREIGN = (*OTHER_IMAGES, *ARCHIVES)


class TarUnit(NamedTuple):
    """A tar, the unit of reading."""

    name: str
    """Path below the root; "" for the root itself."""
    prefix: str
    """First part of the keys of its images."""
    most: int
    """Largest number of images to read; 0: all."""
    error: str = ""
    """Reason why the tar cannot be read; "" if it can."""


class TarMember(NamedTuple):
    """A file in a tar."""

    name: str
    data: bytes
    error: str


@dataclass
class TarSource:
    """Images in tars. root: a tar, or a folder with tars; each tar is a unit.

    The key of an image is the path of the tar without its suffix, followed by the path of the member; with its suffix where two
    tars could give equal keys. Labels come from the files beside the image in the tar, as `fields` describes
    (`reidssl.data.sidecars`). splits: foreign split names -> split.
    """

    root: Location
    fields: FieldConfig = field(default_factory=FieldConfig)
    splits: Mapping[str, str] = field(default_factory=dict)
    follow_links: bool = False
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {"split": pa.string()})

    def plan(self, limit: int) -> ReadingPlan:
        found, others = self._tars()
        if not found:
            raise UserError(f"raw.path {self.root} holds no tar files ({others or ', '.join(TAR_SUFFIXES)})")
        if others:
            say(f"note: {others}")
        if not limit:
            return ReadingPlan(found, None)
        units, left = [], limit
        for unit in found:  # with a limit, count the images of the first tars until it is reached
            count = sum(1 for _ in islice(self._images(unit), left))
            units.append(unit._replace(most=count))
            left -= count
            if left <= 0:
                break
        return ReadingPlan([unit for unit in units if unit.most], limit - left)

    def _tars(self) -> tuple[list[TarUnit], str]:
        """The tars, and a text about files that may be meant and are not taken."""
        if self.root.is_file():
            return [TarUnit("", without_suffix(spelled(self.root.name)), 0)], ""
        names, aside = list_items(self.root, self.follow_links)
        tars = [name for name in names if name.lower().endswith(TAR_SUFFIXES)]
        stems = [without_suffix(name) for name in tars]
        # a.tar and a.tgz would give equal keys, and so would a.tar with the member b/1.jpg and a/b.tar with 1.jpg.
        times, folders = Counter(stems), {folder for name in tars for folder in folders_of(name)}
        unlike = [times[stem] == 1 and stem not in folders for stem in stems]
        units = [TarUnit(name, stem if own else name, 0) for name, stem, own in zip(tars, stems, unlike, strict=True)]
        aside = unreached(aside) | {name: why for name, why in aside.items() if name.lower().endswith(TAR_SUFFIXES)}
        units += [TarUnit(name, name, 0, why) for name, why in aside.items()]
        return sorted(units), not_taken(names, OTHER_ARCHIVES, TAR_SUFFIXES)

    def read(self, unit: TarUnit) -> Iterator[Candidate]:
        return islice(self._images(unit), unit.most or None)

    def _images(self, unit: TarUnit) -> Iterator[Candidate]:
        group: list[TarMember] = []
        key: tuple[str, str] | None = None
        if unit.error:
            yield Candidate(f"{unit.prefix}/", error=unit.error)
            return
        try:
            with open_item(self.root, unit.name) as file, open_tar(file) as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    if member.isdir() or base.startswith("._"):  # macOS adds such a file for each file
                        continue
                    many = sum(len(each.data) for each in group) > LARGEST_IMAGE  # limits memory if all names share a stem
                    if (folder, base.partition(".")[0]) != key or many:
                        yield from self._labeled(group, unit.prefix)
                        group, key = [], (folder, base.partition(".")[0])
                    group.append(self._member(tar, member))
        except Exception as error:  # tarfile and zlib raise many kinds of exceptions for damaged files
            reason = fault_of(self.root, error)
            if isinstance(error, DAMAGE):
                reason = f"damaged tar: all behind this place is lost: {error}"
            yield from self._labeled(group, unit.prefix)
            yield Candidate(f"{unit.prefix}/", error=reason)
            return
        yield from self._labeled(group, unit.prefix)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> TarMember:
        """Read a file of the tar. The content is skipped if it is not needed, or if the name or size is not allowed."""
        name = spelled(member.name)
        parts = name.removeprefix("./").split("/")
        if name.startswith("/") or ".." in parts:
            return TarMember(posixpath.basename(name), b"", f"unsafe name: it leads out of the tar: {name!r}")
        name = "/".join(parts)
        if not member.isreg():
            kind = "a link" if member.issym() or member.islnk() else "a device or a pipe"
            return TarMember(name, b"", f"not a file: it is {kind} in the tar")
        sidecar = is_sidecar(name, self.fields)
        if not (sidecar or _is_image(name)):
            return TarMember(name, b"", "")
        most, what = (LARGEST_SIDECAR, "labels") if sidecar else (LARGEST_IMAGE, "a person image")
        if member.size > most:
            return TarMember(name, b"", f"too large: {member.size:,} bytes are too many for {what}")
        opened = tar.extractfile(member)
        return TarMember(name, opened.read() if opened else b"", "")

    def _labeled(self, group: list[TarMember], prefix: str) -> Iterator[Candidate]:
        """Yields the images of one WebDataset sample (files with the same stem), labeled by the other files of the sample."""
        images = [member for member in group if _is_image(member.name)]
        sidecars = [member for member in group if is_sidecar(member.name, self.fields)]
        foreign = [] if images else [member for member in group if member.name.lower().endswith(FOREIGN)]
        for member in foreign:
            suffix = next(each for each in FOREIGN if member.name.lower().endswith(each))
            yield Candidate(f"{prefix}/{member.name}", error=member.error or f"not taken: {suffix} files in a tar are not read")
        if not images and not foreign:
            for member in sidecars:
                yield Candidate(
                    f"{prefix}/{member.name}",
                    error=member.error
                    or "labels without an image: none of that name stands directly before or behind it in the tar",
                )
        used = {member.name for member in (*images, *sidecars, *foreign)}
        yield from (
            Candidate(f"{prefix}/{each.name}", error=each.error) for each in group if each.error and each.name not in used
        )
        others = sorted({f".{suffix_of(member.name)}" for member in group if member.name not in used and "." in member.name})
        wrong = next((f"labels not understood: {member.name}: {member.error}" for member in sidecars if member.error), "")
        beside = [(member.name, member.data) for member in sidecars]
        for image in images:
            error, labels = image.error or wrong, SidecarLabels()
            if not error:
                try:
                    labels = labels_of(image.name, beside, others, self.fields, self.splits)
                except ValueError as problem:
                    error = f"labels not understood: {problem}"
            yield Candidate(
                f"{prefix}/{image.name}",
                b"" if error else image.data,
                labels.pid,
                labels.camid,
                labels.split,
                error=error,
                note=labels.note,
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
