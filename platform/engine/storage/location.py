"""The one door to storage: a URI becomes a Location that reads, lists and publishes atomically.

    open_storage("runs/x")            a folder on this machine or a shared mount (made absolute)
    open_storage("file:///data/x")    the same, as a URI
    open_storage("s3://bucket/x")     AWS or any S3-compatible server (storage.endpoint_url)

A Location is a URI and a StorageConfig: it holds no credentials and no connection, so it travels to Ray workers as it
is. Every write is atomic: readers see the old content or the new one, never a part. Errors are StorageError in plain
words.
"""

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
from boto3.s3.transfer import TransferConfig

from platform.engine.config.paths import absolute
from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.s3 import (
    StorageConfig,
    abort_uploads,
    client,
    delete_objects,
    filesystem,
    list_objects,
    make_bucket,
)
from platform.engine.storage.s3_errors import S3_ERRORS, explain
from platform.engine.storage.writable import probe_folder

__all__ = [
    "Listed",
    "Location",
    "NotFoundError",
    "StorageConfig",
    "StorageError",
    "abort_incomplete_uploads",
    "create_bucket",
    "open_storage",
]

PARTIAL = ".partial"
PASSING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.ESTALE,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ECONNRESET,
}


class Listed(NamedTuple):
    """One file below a location."""

    name: str
    """Path relative to the location, with forward slashes."""
    bytes: int


def open_storage(uri: str, config: StorageConfig | None = None) -> "Location":
    """The Location of a path, a file:// URI or an s3:// URI. Opens no connection. Raises StorageError."""
    try:
        return Location(absolute(str(uri)), config or StorageConfig())
    except ValueError as error:
        raise StorageError(str(error)) from None


@dataclass(frozen=True)
class Location:
    """A file, folder, object or prefix."""

    uri: str
    config: StorageConfig = field(default_factory=StorageConfig, repr=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def is_s3(self) -> bool:
        return self.uri.startswith("s3://")

    @property
    def path(self) -> str:
        """The path as `filesystem` wants it: absolute, or bucket/key."""
        return self.uri.removeprefix("s3://")

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def key(self) -> str:
        return self.path.partition("/")[2]

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem; pickles without credentials."""
        if not self.is_s3:
            return pafs.LocalFileSystem()
        with self.errors("open"):
            return filesystem(self.config, self.bucket)

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turns what goes wrong inside into a StorageError saying that one "cannot <action> <uri>" and why."""
        try:
            yield
        except (*S3_ERRORS, pa.ArrowException) as error:
            raise self._explain(action, error) from None

    def _explain(self, action: str, error: Exception) -> StorageError:
        if self.is_s3:
            return explain(self.uri, self.bucket, self.config, action, error)
        failed = f"cannot {action} {self.uri}"
        if isinstance(error, FileNotFoundError):
            return NotFoundError(f"{failed}: it does not exist")
        if isinstance(error, PermissionError):
            return StorageError(f"{failed}: permission denied. Check the owner and mode of the file and its folder")
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        return StorageError(f"{failed}: {reason}", transient=getattr(error, "errno", None) in PASSING)

    def joinpath(self, *parts: str) -> "Location":
        """A location below this one. Raises StorageError for parts that could lead elsewhere (.., absolute, empty)."""
        uri = self.uri
        for part in parts:
            names = str(part).split("/")
            if any(name in ("", ".", "..") or "\0" in name for name in names):
                raise StorageError(f"{part!r} is not a name below {self.uri}: '..', '.', empty and absolute parts are refused")
            uri = f"{uri.rstrip('/')}/{part}"
        return Location(uri, self.config)

    __truediv__ = joinpath

    def exists(self) -> bool:
        """True for a file or object, and for a folder or prefix with something in it (locally: also an empty one)."""
        with self.errors("look at"):
            return self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        with self.errors("look at"):
            return self.filesystem.get_file_info(self.path).type == pafs.FileType.File

    def size(self) -> int:
        """Bytes of a file or object. Raises NotFoundError."""
        with self.errors("look at"):
            info = self.filesystem.get_file_info(self.path)
        if info.type != pafs.FileType.File:
            raise NotFoundError(f"cannot look at {self.uri}: it does not exist or is a folder")
        return int(info.size)

    def list(self, recursive: bool = True) -> "list[Listed]":
        """Files below this location, sorted by name; [] when there is nothing. Unfinished writes are left out."""
        with self.errors("list"):
            found = self._list_s3(recursive) if self.is_s3 else self._list_local(recursive)
            return sorted(item for item in found if not item.name.endswith(PARTIAL))

    def _list_s3(self, recursive: bool) -> Iterator[Listed]:
        prefix = f"{self.key}/" if self.key else ""
        for key, size in list_objects(self.config, self.bucket, prefix, recursive):
            if not key.endswith("/"):  # a marker that some tools write for an empty folder
                yield Listed(key.removeprefix(prefix), size)

    def _list_local(self, recursive: bool) -> Iterator[Listed]:
        visited = set()
        for folder, folders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited or not recursive:  # a link back to a parent must not go round for ever
                folders.clear()
            if real not in visited:
                for name in files:
                    path = os.path.join(folder, name)
                    if os.path.isfile(path):
                        yield Listed(os.path.relpath(path, self.path), os.path.getsize(path))
            visited.add(real)

    def read_bytes(self) -> bytes:
        with self.open_input() as file, self.errors("read"):
            return file.read()

    def read_text(self) -> str:
        """The content as UTF-8."""
        try:
            return self.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise StorageError(f"cannot read {self.uri}: it is not UTF-8 text ({error.reason} at byte {error.start})") from None

    def read_json(self) -> Any:
        try:
            return json.loads(self.read_text())
        except json.JSONDecodeError as error:
            raise StorageError(f"cannot read {self.uri}: it is not valid JSON (line {error.lineno}: {error.msg})") from None

    def open_input(self) -> pa.NativeFile:
        """Random-access file for reading; on S3 only the ranges that are read travel."""
        with self.errors("read"):
            return self.filesystem.open_input_file(self.path)

    def write_bytes(self, data: bytes) -> None:
        with self.errors("write"), self.open_output() as file:
            file.write(data)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode("utf-8"))

    def write_json(self, value: Any) -> None:
        self.write_text(json.dumps(value, indent=1) + "\n")

    @contextmanager
    def open_output(self) -> Iterator[IO[bytes]]:
        """File for writing that appears under its name only when the block ends without an exception.

        Locally a hidden neighbor is renamed; for S3 the content is spooled (to memory up to 64 MiB, then to the
        temporary folder) and uploaded at the end, in parts when it is large.
        """
        if self.is_s3:
            with tempfile.SpooledTemporaryFile(max_size=64 << 20) as file:
                yield file
                file.seek(0)
                with self.errors("write"):
                    self._upload(file)
            return
        target = Path(self.path)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
        with self.errors("write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            opened = partial.open("xb")
        try:
            with opened:
                yield opened
                with self.errors("write"):
                    opened.flush()
                    os.fsync(opened.fileno())
            with self.errors("write"):
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _upload(self, file: Any) -> None:
        parts = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=32 << 20, max_concurrency=4)
        client(self.config).upload_fileobj(file, self.bucket, self.key, Config=parts)

    def delete(self) -> None:
        """Remove a file or everything below a folder; nothing happens when it is not there."""
        if not (self.key if self.is_s3 else Path(self.path).parent != Path(self.path)):
            raise StorageError(f"refusing to delete all of {self.uri}")
        with self.errors("delete"):
            if self.is_s3:
                below = [f"{self.key}/{item.name}" for item in self._list_s3(recursive=True)]
                delete_objects(self.config, self.bucket, [self.key, *below])
            elif os.path.isdir(self.path) and not os.path.islink(self.path):
                shutil.rmtree(self.path)
            elif os.path.lexists(self.path):
                os.unlink(self.path)

    @property
    def parent(self) -> "Location":
        """The folder or prefix that this is in."""
        above = self.path.rstrip("/").rpartition("/")[0]
        return Location(f"s3://{above or self.bucket}" if self.is_s3 else above or "/", self.config)

    def prepare_output(self) -> "Location":
        """Find out now, not after hours of work, whether files can go below here, by writing one and taking it away.

        Creates the bucket if so configured. Raises StorageError.
        """
        if self.is_s3:
            self._probe_bucket()
        else:
            with self.errors("write to"):
                probe_folder(self.path)
        return self

    def _probe_bucket(self) -> None:
        if self.config.create_bucket:
            create_bucket(self.uri, self.config)
        else:
            with self.errors("write to"):
                client(self.config).head_bucket(Bucket=self.bucket)
        if self.key and self.is_file():
            raise StorageError(f"cannot write to {self.uri}: it is an object, a prefix is needed")
        with self.errors("write to"):
            probe = {"Bucket": self.bucket, "Key": f"{self.key}/.probe.{uuid.uuid4().hex[:12]}{PARTIAL}".lstrip("/")}
            client(self.config).put_object(Body=b"", **probe)
            client(self.config).delete_object(**probe)


def create_bucket(uri: str, config: StorageConfig | None = None) -> None:
    """Create the bucket of an s3:// URI; nothing happens when it is ours already. Raises StorageError."""
    location = open_storage(uri, config)
    if not location.is_s3:
        raise StorageError(f"{uri} has no bucket to create")
    with location.errors("create the bucket of"):
        make_bucket(location.config, location.bucket)


def abort_incomplete_uploads(uri: str, config: StorageConfig | None = None, older_than_h: float = 24.0) -> int:
    """Remove the parts that killed processes left below an s3:// URI (they cost money and are listed nowhere).

    Returns how many uploads were aborted; 0 for local paths, which leave none.
    """
    location = open_storage(uri, config)
    if not location.is_s3:
        return 0
    with location.errors("clean up"):
        return abort_uploads(location.config, location.bucket, location.key, older_than_h)
