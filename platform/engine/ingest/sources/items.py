"""Listing and opening the items of a source, and telling one item's fault from the whole source's.

Names are as `reidssl.data.names` spells them, so that they can be stored, printed and given back. Local files are opened
with the operating system's own names, and object keys that are no paths (`a//b`, `/a`, `../a`) by the key as it is.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, Any, NamedTuple

from platform.engine.errors import NotFoundError, StorageError, UserError
from platform.engine.ingest.sources.source import LARGEST_IMAGE
from platform.engine.storage.location import PARTIAL, Location
from platform.engine.storage.s3 import client
from reidssl.data.names import spelled, unspelled

MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # no item is to blame


class Listing(NamedTuple):
    """What is below a root."""

    names: list[str]
    """Files, sorted."""
    aside: dict[str, str]
    """What is no readable file -> the reason."""


def list_items(root: Location) -> Listing:
    """All files below `root`. Raises StorageError where the root itself cannot be listed."""
    if root.is_s3:
        return Listing(sorted(spelled(item.name) for item in root.list()), {})
    names: list[str] = []
    aside: dict[str, str] = {}
    for path, reason in _walk(root):
        name = spelled(os.path.relpath(path, root.path))
        if reason:
            aside[name] = reason
        else:
            names.append(name)
    return Listing(sorted(names), aside)


def _walk(root: Location) -> Iterator[tuple[str, str]]:
    """(path, "" or why it is no file to read) below a local folder; links to folders are followed, each folder once."""
    unlisted: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        if error.filename == root.path and not isinstance(error, FileNotFoundError):
            with root.errors("list"):
                raise error
        unlisted.append((str(error.filename), f"cannot be listed: {error.strerror}"))

    visited = set()
    for folder, folders, files in os.walk(root.path, followlinks=True, onerror=note):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to a parent must not go round for ever
            folders.clear()
            continue
        visited.add(real)
        if not folders and not files and folder != root.path and "." in os.path.basename(folder):  # named like a file
            yield folder, "not a file: it is an empty folder"
        for name in files:
            if not name.endswith(PARTIAL):
                path = os.path.join(folder, name)
                yield path, _why_no_file(path)
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
    """A file opened for reading; name "" is the root itself. Raises OSError or StorageError."""
    raw = unspelled(name)
    if not root.is_s3:
        # Without O_NONBLOCK a pipe that took the place of a file would wait for a writer for ever.
        handle = os.open(os.path.join(root.path, raw) if raw else root.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(handle, "rb")
    if not any(part in ("", ".", "..") for part in raw.split("/")):
        return root.joinpath(raw).open_input()
    return root.open_input() if not raw else _download(root, raw)


def _download(root: Location, name: str) -> IO[bytes]:
    """An object whose key is no path, which pyarrow refuses."""
    key = f"{root.key}/{name}" if root.key else name
    file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=LARGEST_IMAGE)  # noqa: SIM115  # the caller closes it
    with Location(f"{root.uri}/{name}", root.config).errors("read"):
        client(root.config).download_fileobj(root.bucket, key, file)
    file.seek(0)
    return file


def read_item(root: Location, name: str) -> bytes:
    """The content of an image file. Raises ValueError where it is too large to be one, and as opening and reading do."""
    with open_item(root, name) as file, root.errors("read from") if root.is_s3 else nullcontext():
        data: bytes = file.read(LARGEST_IMAGE + 1)
    if len(data) > LARGEST_IMAGE:
        raise ValueError(f"too large: more than {LARGEST_IMAGE:,} bytes are no person image")
    return data


def fault_of(root: Location, error: Exception) -> str:
    """Why one item cannot be had, as "<kind>: <detail>".

    Raises UserError where it is no fault of the item: the root is gone, the server does not answer or lets nobody in, or
    the machine is out of files or memory.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE:
        raise UserError(f"{root}: this machine cannot read on: {error}") from None
    if isinstance(error, UserError) and not isinstance(error, StorageError):
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
