"""List and open the items of a source, and distinguish faults of one item from faults of the whole source.

Names are spelled as by `reidssl.data.names`, so that they can be stored, printed and converted back. Local files are opened by
their original names, and objects whose keys are not paths (`a//b`, `/a`, `../a`) by their original keys.
"""

import errno
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from platform.engine.errors import NotFoundError, StorageError, UserError
from platform.engine.ingest.sources.source import LARGEST_IMAGE
from platform.engine.storage.location import NO_ANSWER, PARTIAL, Location
from platform.engine.storage.patient_input import open_patiently
from platform.engine.storage.retry import patiently
from platform.engine.storage.s3 import client
from platform.engine.storage.walk import walk_once
from reidssl.data.names import spelled, unspelled

LEADS_OUT = "not followed: a link that leads out of the folder (raw.follow_links=true follows it)"
MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, *NO_ANSWER}  # errors of the machine or of a mount, not of an item


class Listing(NamedTuple):
    """The items below a root."""

    names: list[str]
    """Names of the files, sorted."""
    aside: dict[str, str]
    """Name of each item that is not a readable file -> the reason."""


def list_items(root: Location, follow_links: bool = False) -> Listing:
    """All items below `root`. Raises StorageError if the root itself cannot be listed.

    follow_links: also follow links that lead out of the root. Otherwise they are set aside.
    """
    if root.is_s3:
        return Listing(sorted(spelled(item.name) for item in root.list()), {})
    names: list[str] = []
    aside: dict[str, str] = {}
    for path, reason in _walk(root, follow_links):
        name = spelled(os.path.relpath(path, root.path))
        if reason:
            aside[name] = reason
        else:
            names.append(name)
    return Listing(sorted(names), aside)


def folders_of(name: str) -> list[str]:
    """All folders in which an item lies, below the root: a and a/b of a/b/c."""
    return [name[:place] for place, letter in enumerate(name) if letter == "/"]


def unreached(aside: Mapping[str, str]) -> dict[str, str]:
    """The entries of `Listing.aside` that may be folders, or links to something outside: nobody knows what is there."""
    return {name: reason for name, reason in aside.items() if reason.startswith("cannot be listed") or reason == LEADS_OUT}


def not_taken(names: Iterable[str], others: Iterable[str], taken: Sequence[str]) -> str:
    """Counts the files with one of the suffixes `others`, in a text for the user; "" if there are none. taken: suffixes."""
    found = Counter(suffix for name in names for suffix in others if name.lower().endswith(suffix))
    if not found:
        return ""
    counted = ", ".join(f"{count:,} {suffix}" for suffix, count in found.most_common())
    return f"not taken, since only {', '.join(taken)} are read: {counted}"


def _walk(root: Location, follow_links: bool) -> Iterator[tuple[str, str]]:
    """Yields (path, "" or the reason why it is not a readable file) below a local folder.

    Links to folders are followed, with `follow_links` also out of the root. Each folder is visited once, a real folder below the
    root under its own name.
    """
    unlisted: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        if error.filename == root.path and not isinstance(error, FileNotFoundError):
            with root.errors("list"):
                raise error
        unlisted.append((str(error.filename), f"cannot be listed: {error.strerror}"))

    real_root = os.path.realpath(root.path)

    def leads_out(path: str) -> bool:
        if follow_links or not os.path.islink(path):
            return False
        return os.path.commonpath([real_root, os.path.realpath(path)]) != real_root

    for folder, folders, files in walk_once(root.path, onerror=note):
        outside = [name for name in folders if leads_out(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in outside]
        yield from ((os.path.join(folder, name), LEADS_OUT) for name in outside)
        if not folders and not files and folder != root.path and "." in os.path.basename(folder):  # named like a file
            yield folder, "not a file: it is an empty folder"
        for name in files:
            if not name.endswith(PARTIAL):
                path = os.path.join(folder, name)
                yield path, LEADS_OUT if leads_out(path) and os.path.exists(path) else _why_no_file(path)
    yield from ((path, reason) for path, reason in unlisted if path != root.path)


def _why_no_file(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "not there: a link to nothing, or removed meanwhile"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if stat.S_ISREG(mode) else "not a file: it is a pipe, a socket or a device"


def open_item(root: Location, name: str) -> Any:
    """Open an item for reading. name "" is the root itself. Raises OSError or StorageError.

    Requests to object storage that fail for a while are retried, here and while reading.
    """
    raw = unspelled(name)
    if not root.is_s3:
        # Without O_NONBLOCK, opening a pipe that has replaced a file would wait for a writer forever.
        handle = os.open(os.path.join(root.path, raw) if raw else root.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(handle, "rb")
    if not any(part in ("", ".", "..") for part in raw.split("/")):
        return open_patiently(root.joinpath(raw))
    return open_patiently(root) if not raw else patiently(lambda: _download(root, raw), root.config.retry_timeout_s)


def _download(root: Location, name: str) -> IO[bytes]:
    """Open an object whose key is not a path. pyarrow refuses such keys, so it is downloaded."""
    key = f"{root.key}/{name}" if root.key else name
    file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=LARGEST_IMAGE)  # noqa: SIM115  # the caller closes it
    with Location(f"{root.uri}/{name}", root.config).errors("read"):
        client(root.config).download_fileobj(root.bucket, key, file)
    file.seek(0)
    return file


def read_item(root: Location, name: str) -> bytes:
    """The content of an image file. Raises ValueError if it is too large, OSError or StorageError if it cannot be read."""
    with open_item(root, name) as file:
        data: bytes = file.read(LARGEST_IMAGE + 1)
    if len(data) > LARGEST_IMAGE:
        raise ValueError(f"too large: more than {LARGEST_IMAGE:,} bytes are no person image")
    return data


def fault_of(root: Location, error: Exception) -> str:
    """The reason why an item cannot be read, as "<kind>: <detail>".

    Raises UserError if the fault is not of the item: the root is gone, the server does not answer or denies access, a mount does
    not answer, or the machine has run out of file handles or memory. An ingest that ends so continues later.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE:
        raise UserError(f"{root}: this machine cannot read on: {error}") from None
    if isinstance(error, UserError) and (not isinstance(error, StorageError) or error.transient):
        raise error
    if not root.exists():
        raise StorageError(f"cannot read {root} any more: it is gone. Mount or restore it and run the same command again")
    if isinstance(error, NotFoundError | FileNotFoundError):
        return "not there: it was listed, but the file does not exist"
    if isinstance(error, StorageError):
        return f"cannot be read: {error}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    text = (str(error).splitlines() or [""])[0][:200]
    return text if isinstance(error, ValueError) and ": " in text else f"cannot be read: {type(error).__name__}: {text}"
