"""All access to storage: a URI becomes a Location that reads, lists and writes atomically.

    open_storage("runs/x")            a folder on this machine or a shared mount (made absolute)
    open_storage("file:///data/x")    the same, as a URI
    open_storage("s3://bucket/x")     AWS or any S3-compatible server (storage.endpoint_url)

A Location consists of a URI and a StorageConfig. It holds no credentials and no connection, so it can be pickled to Ray
workers. Every write is atomic: readers see either the old or the new content, never a part. Failures raise StorageError.
"""

import errno
import json
import os
import shutil
import stat
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
from platform.engine.storage.deletion import delete_objects
from platform.engine.storage.first_answer import await_answer
from platform.engine.storage.s3 import (
    StorageConfig,
    abort_uploads,
    client,
    filesystem,
    list_objects,
    make_bucket,
)
from platform.engine.storage.s3_errors import S3_ERRORS, explain
from platform.engine.storage.walk import walk_once
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
NO_ANSWER = {errno.ETIMEDOUT, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET}  # of a network mount
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, *NO_ANSWER}


class Listed(NamedTuple):
    """A file below a location."""

    name: str
    """Path relative to the location, with forward slashes."""
    bytes: int
    """Size of the file."""


def open_storage(uri: str, config: StorageConfig | None = None) -> "Location":
    """The Location of a path, a file:// URI or an s3:// URI. Opens no connection. Raises StorageError for an invalid URI."""
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
        """The path for `filesystem`: an absolute path, or bucket/key."""
        return self.uri.removeprefix("s3://")

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def bucket(self) -> str:
        """The bucket of an s3:// URI."""
        return self.path.partition("/")[0]

    @property
    def key(self) -> str:
        """The key or prefix of an s3:// URI, without the bucket."""
        return self.path.partition("/")[2]

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem. It is pickled without credentials."""
        if not self.is_s3:
            return pafs.LocalFileSystem()
        with self.errors("open"):
            return filesystem(self.config, self.bucket)

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Context manager: turns storage errors into a StorageError with the text "cannot <action> <uri>: <reason>"."""
        if self.is_s3:
            await_answer(f"cannot {action} {self.uri}", self.config, self.bucket)
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
        """A location below this one. Raises StorageError for parts that are empty, absolute or contain "." or ".."."""
        uri = self.uri
        for part in parts:
            names = str(part).split("/")
            if any(name in ("", ".", "..") or "\0" in name for name in names):
                raise StorageError(f"{part!r} is not a name below {self.uri}: '..', '.', empty and absolute parts are refused")
            uri = f"{uri.rstrip('/')}/{part}"
        return Location(uri, self.config)

    __truediv__ = joinpath

    def exists(self) -> bool:
        """Whether there is a file or object, or a folder or prefix with content. A local folder may be empty."""
        with self.errors("look at"):
            return self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether there is a file or object at this location."""
        with self.errors("look at"):
            return self.filesystem.get_file_info(self.path).type == pafs.FileType.File

    def size(self) -> int:
        """Size of a file or object in bytes. Raises NotFoundError if there is none."""
        with self.errors("look at"):
            info = self.filesystem.get_file_info(self.path)
        if info.type != pafs.FileType.File:
            raise NotFoundError(f"cannot look at {self.uri}: it does not exist or is a folder")
        return int(info.size)

    def list(self, recursive: bool = True) -> "list[Listed]":
        """Files below this location, sorted by name; [] if there are none. Unfinished writes are skipped.

        recursive: false lists only the files directly in this folder.
        """
        with self.errors("list"):
            found = self._list_s3(recursive) if self.is_s3 else self._list_local(recursive)
            return sorted(item for item in found if not item.name.endswith(PARTIAL))

    def _list_s3(self, recursive: bool) -> Iterator[Listed]:
        prefix = f"{self.key}/" if self.key else ""
        for key, size in list_objects(self.config, self.bucket, prefix, recursive):
            if not key.endswith("/"):  # some tools write such a key as a marker of an empty folder
                yield Listed(key.removeprefix(prefix), size)

    def _list_local(self, recursive: bool) -> Iterator[Listed]:
        for folder, folders, files in walk_once(self.path):
            if not recursive:
                folders.clear()
            for name in files:
                path = os.path.join(folder, name)
                try:
                    about = os.stat(path)
                except OSError:  # it went meanwhile, or is a link to nothing
                    continue
                if stat.S_ISREG(about.st_mode):
                    yield Listed(os.path.relpath(path, self.path), about.st_size)

    def read_bytes(self) -> bytes:
        """The content of a file. Raises StorageError, NotFoundError if there is none."""
        with self.open_input() as file, self.errors("read"):
            return file.read()

    def read_text(self) -> str:
        """The content of a UTF-8 file. Raises StorageError, also for invalid UTF-8."""
        try:
            return self.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise StorageError(f"cannot read {self.uri}: it is not UTF-8 text ({error.reason} at byte {error.start})") from None

    def read_json(self) -> Any:
        """The value in a JSON file. Raises StorageError, also for invalid JSON."""
        try:
            return json.loads(self.read_text())
        except json.JSONDecodeError as error:
            raise StorageError(f"cannot read {self.uri}: it is not valid JSON (line {error.lineno}: {error.msg})") from None

    def open_input(self) -> pa.NativeFile:
        """Open for random-access reading. On S3, only the ranges that are read are transferred. Raises StorageError."""
        with self.errors("read"):
            return self.filesystem.open_input_file(self.path)

    def write_bytes(self, data: bytes) -> None:
        """Write a file atomically. Raises StorageError."""
        with self.errors("write"), self.open_output() as file:
            file.write(data)

    def write_text(self, text: str) -> None:
        """Write a UTF-8 file atomically. Raises StorageError."""
        self.write_bytes(text.encode("utf-8"))

    def write_json(self, value: Any) -> None:
        """Write a JSON file atomically. Raises StorageError."""
        self.write_text(json.dumps(value, indent=1) + "\n")

    @contextmanager
    def open_output(self) -> Iterator[IO[bytes]]:
        """Context manager: a file for writing, published under its name only if the block ends without an exception.

        A local file is written under a hidden name in the same folder and then renamed. For S3, the content is spooled (to memory
        up to 64 MiB, then to the temporary folder) and uploaded at the end, in parts if it is large. Raises StorageError.
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
        """Delete a file, or a folder with its content. Does nothing if it does not exist. Raises StorageError.

        A whole bucket or the root folder is refused.
        """
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
        """The folder or prefix that contains this location."""
        above = self.path.rstrip("/").rpartition("/")[0]
        return Location(f"s3://{above or self.bucket}" if self.is_s3 else above or "/", self.config)

    def prepare_output(self) -> "Location":
        """Check that files can be written below this location, by writing one and deleting it. Returns the location.

        Call it before hours of work. Creates the bucket if `config.create_bucket`. Raises StorageError.
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
    """Create the bucket of an s3:// URI. Does nothing if this account owns it already. Raises StorageError."""
    location = open_storage(uri, config)
    if not location.is_s3:
        raise StorageError(f"{uri} has no bucket to create")
    with location.errors("create the bucket of"):
        make_bucket(location.config, location.bucket)


def abort_incomplete_uploads(uri: str, config: StorageConfig | None = None, older_than_h: float = 24.0) -> int:
    """Abort the unfinished multipart uploads of killed processes below an s3:// URI. They cost money and are not listed.

    Only uploads older than `older_than_h` hours are aborted. Returns their number; 0 for local paths. Raises StorageError.
    """
    location = open_storage(uri, config)
    if not location.is_s3:
        return 0
    with location.errors("clean up"):
        below = f"{location.key}/" if location.key else ""  # not those of run2 with those of run
        return abort_uploads(location.config, location.bucket, below, older_than_h)
