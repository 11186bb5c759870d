"""Checkpoints in object storage: published atomically, verified when read; incomplete (torn) ones are skipped."""

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from platform.engine.errors import NotFoundError, UserError
from platform.engine.schemas.training_settings import CheckpointConfig as CheckpointConfig
from platform.engine.storage.location import PARTIAL, Location
from platform.engine.storage.retry import patiently
from reidssl.models.weight_files import ModelFile, read_content

STATE, MANIFEST = "state.pt", "manifest.json"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read and verified, and the names of newer torn checkpoints."""

    position: int
    payload: dict[str, Any]
    metadata: dict[str, Any]
    torn: tuple[str, ...] = ()


class CheckpointStore:
    """The checkpoints in a folder: `<root>/position-000000001234/` holds the state and a manifest with its size and SHA-256.

    The manifest is written last. `position` orders the checkpoints; in pre-training it is the number of samples seen. The state
    is one file of tensors and plain values that `torch.load(..., weights_only=True)` reads. The newest `keep` checkpoints are
    kept.
    """

    def __init__(self, root: Location, keep: int = 2, keep_multiples_of: int = 0) -> None:
        self.root = root
        self.keep = keep
        self.keep_multiples_of = keep_multiples_of
        """Positions that are multiples of this number are never deleted; 0: no such positions."""

    def save(self, position: int, payload: dict[str, Any], metadata: dict[str, Any]) -> dict[str, float]:
        """Publish a checkpoint and delete those not kept any longer. Returns {"mebibytes", "seconds"}. Raises StorageError."""
        started = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        data = buffer.getvalue()
        folder = self.root / _folder(position)
        (folder / STATE).write_bytes(data)
        manifest = {"position": position, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "metadata": metadata}
        (folder / MANIFEST).write_json(manifest)
        complete = self._complete()
        # Checkpoints ahead of this position are torn, or this run would have continued from them.
        stale = (
            self.unfinished()
            + [other for other in complete if other > position]
            + [
                old
                for old in [p for p in complete if p <= position][self.keep :]
                if not self.keep_multiples_of or old % self.keep_multiples_of
            ]
        )
        for old in stale:
            (self.root / _folder(old) / MANIFEST).delete()  # first, so that a partly deleted checkpoint does not count
            (self.root / _folder(old)).delete()
        before = [p for p in complete if p <= position][1 : max(self.keep, 2)]
        if before:
            self._delete_leftovers(before[-1])
        return {"mebibytes": len(data) / 2**20, "seconds": time.perf_counter() - started}

    def newest(self, at_most: int = 0) -> LoadedCheckpoint | None:
        """The newest checkpoint whose bytes match its manifest; None if there is no checkpoint.

        at_most: largest position to consider; 0: any. Raises UserError if there are checkpoints and all are torn, and for
        a checkpoint that holds code.
        """
        torn, complete = [], self._complete()
        for position in complete:
            if at_most and position > at_most:
                continue
            read = self._read(position)
            if read is None:
                torn.append(position)
                continue
            manifest, data = read
            try:
                payload = read_content(ModelFile(data, (self.root / _folder(position) / STATE).uri))
            except ValueError as error:  # its checksum is right, so it is not torn: another program wrote it
                raise UserError(str(error)) from None
            torn += [unfinished for unfinished in self.unfinished() if unfinished > position]
            return LoadedCheckpoint(position, payload, manifest["metadata"], tuple(map(_folder, sorted(torn, reverse=True))))
        if torn:
            raise UserError(
                f"no checkpoint under {self.root.uri} can be read: {', '.join(map(_folder, torn))} do not match "
                "their manifests. Delete that folder to start over"
            )
        return None

    def peek(self, at_most: int = 0) -> tuple[int, dict[str, Any]] | None:
        """(position, metadata) of the newest checkpoint as its manifest says, without reading its state; None if there is none.

        at_most: as for `newest`. Raises StorageError if storage does not answer.
        """
        for position in self._complete():
            if not at_most or position <= at_most:
                try:
                    return position, dict(json.loads((self.root / _folder(position) / MANIFEST).read_bytes())["metadata"])
                except (NotFoundError, ValueError, KeyError, TypeError):  # torn, as for `newest`
                    continue
        return None

    def unfinished(self) -> list[int]:
        """Positions without a manifest, newest first: interrupted uploads, or the upload in progress."""
        return self._positions(lambda files: MANIFEST not in files)

    def _complete(self) -> list[int]:
        """Positions that have a manifest, newest first."""
        return self._positions(lambda files: MANIFEST in files)

    def _delete_leftovers(self, position: int) -> None:
        """Delete what killed writes left in the folders before `position`, a checkpoint that is not the newest.

        A worker that still writes has begun at that checkpoint or later, so its file is left alone.
        """
        if self.root.is_s3:  # a killed upload leaves no object
            return
        with self.root.errors("list"):
            hidden = sorted(Path(self.root.path).glob(f"position-*/.*{PARTIAL}"))  # `list` does not show them
        for file in hidden:
            number = file.parent.name.removeprefix("position-")
            if number.isdecimal() and int(number) < position:
                (self.root / file.parent.name / file.name).delete()
                with suppress(OSError):  # a checkpoint that is kept for good
                    file.parent.rmdir()

    def _positions(self, which: Callable[[set[str]], bool]) -> list[int]:
        folders: dict[str, set[str]] = {}
        for item in self.root.list():
            folder, _, file = item.name.partition("/")
            if re.fullmatch(r"position-\d+", folder):
                folders.setdefault(folder, set()).add(file)
        return sorted((int(folder.removeprefix("position-")) for folder, files in folders.items() if which(files)), reverse=True)

    def _read(self, position: int) -> tuple[dict[str, Any], bytes] | None:
        """(manifest, bytes of the state); None if the checkpoint is torn. Raises StorageError if storage does not answer."""
        folder = self.root / _folder(position)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            data = (folder / STATE).read_bytes()
            whole = len(data) == manifest["bytes"] and hashlib.sha256(data).hexdigest() == manifest["sha256"]
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None
        return (manifest, data) if whole else None


class BackgroundWriter:
    """Publishes checkpoints in a background thread, one at a time, while training goes on.

    The payload must belong to the writer: no other code may change its tensors. While storage fails, the thread retries for
    `retry_timeout_s` seconds. After that, the next call of `check`, `submit` or `flush` raises the error.
    """

    def __init__(self, store: CheckpointStore, retry_timeout_s: float = 0.0, tell: Callable[[str], None] | None = None) -> None:
        self.store = store
        self.retry_timeout_s = retry_timeout_s
        self.tell = tell
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._told: dict[str, float] = {}
        self.seconds = 0.0
        """Seconds that writing the newest checkpoint took."""
        self.stall_seconds = 0.0
        """Seconds that training was stopped for it; set by the code that copies the state."""

    def submit(
        self, position: int, payload: dict[str, Any], metadata: dict[str, Any], before: Callable[[], None] | None = None
    ) -> None:
        """Start to publish a checkpoint, after calling `before()` in the same thread. Waits for the previous checkpoint.

        before: publishes the metrics log, which may be ahead of a checkpoint but never behind it.
        """
        self.flush()
        self._thread = threading.Thread(target=self._write, args=(position, payload, metadata, before), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the background thread, if there is one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def flush(self) -> None:
        """Wait until the checkpoint is written. Raises the error of the background thread, if there is one."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def take(self) -> dict[str, float]:
        """{"mebibytes", "seconds", "stall_seconds"} of the newest published checkpoint; {} if none is new since the last call."""
        told, self._told = self._told, {}
        return told | {"stall_seconds": self.stall_seconds} if told else {}

    def _write(self, position: int, payload: dict[str, Any], metadata: dict[str, Any], before: Callable[[], None] | None) -> None:
        try:
            if before is not None:
                patiently(before, self.retry_timeout_s, self.tell)
            self._told = patiently(lambda: self.store.save(position, payload, metadata), self.retry_timeout_s, self.tell)
            self.seconds = self._told["seconds"]
        except UserError as error:
            self._error = UserError(
                f"checkpoint {_folder(position)} could not be written: {error}. The run continues from the "
                "one before it when the same command is run again"
            )
        except BaseException as error:
            self._error = error


def _folder(position: int) -> str:
    return f"position-{position:012d}"
