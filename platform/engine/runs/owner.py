"""One command at a time writes to a folder: two would delete each other's checkpoints and shards.

The owner of a folder renews a small file in it. A second command watches that file: if it is renewed, the owner lives and the
second command is refused; if not, the owner was killed, and the second command takes its place. The clocks of two machines are
never compared. Only commands own folders: what runs within a command, such as a stage of the pipeline, belongs to its owner.

Two commands that start together both find no file. So each looks again a moment after it has written: the last to write is the
owner. A command that has gone on all the same, because the other wrote late, finds that at its next renewal and ends itself.
"""

import os
import signal
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from platform.engine.errors import StorageError, UserError
from platform.engine.runs.json_records import value_in
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location

OWNER = ".owner.json"
RENEWED_EVERY_S = 15.0
WATCHED_S = 50.0
"""A living owner renews its file several times within this time, even on a busy machine."""
SETTLED_S = 0.25
"""Time from writing the file to looking again: longer than another command takes from finding no file to writing its own."""


class Claims:
    """The folders that this process owns. Use as a context manager around a command; it gives them back."""

    current: "Claims | None" = None

    def __init__(self, renewed_every_s: float = RENEWED_EVERY_S, watched_s: float = WATCHED_S) -> None:
        self.renewed_every_s, self.watched_s = renewed_every_s, watched_s
        self.me = {"host": _machine(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "id": uuid.uuid4().hex}
        self.folders: dict[str, Location] = {}
        self.ended = threading.Event()
        self.renewing = threading.Thread(target=self._renew, daemon=True)
        self.renewals = 0

    def __enter__(self) -> "Claims":
        Claims.current = self
        self.renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        Claims.current = None
        self.ended.set()
        self.renewing.join(RENEWED_EVERY_S)
        for folder in self.folders.values():
            with suppress(UserError, OSError):  # without patience: storage that fails must not hold the end up
                found = (folder / OWNER).read_json()
                if isinstance(found, dict) and found.get("id") == self.me["id"]:
                    (folder / OWNER).delete()

    def add(self, folder: Location) -> None:
        """Own `folder`. Raises UserError if another command does."""
        if folder.uri in self.folders:
            return
        other = _owner_of(folder)
        if self._is_others(other):
            self._watch(folder, other)
        found = None
        while found is None:  # a second time if the other command has ended meanwhile
            self._write(folder)
            time.sleep(SETTLED_S)
            found = _owner_of(folder)
        if self._is_others(found):
            raise _refused(folder, found)
        self.folders[folder.uri] = folder

    def _is_others(self, found: Any) -> TypeGuard[dict[str, Any]]:
        return isinstance(found, dict) and found.get("id") != self.me["id"]

    def _watch(self, folder: Location, other: dict[str, Any]) -> None:
        """Return when the owner is known to be dead. Raises UserError if it lives."""
        if other.get("host") == self.me["host"] and not Path(f"/proc/{other.get('pid')}").exists():
            return
        say(f"{folder.uri} belongs to another command ({_named(other)}): watching for {self.watched_s:g} s whether it still runs")
        until = time.monotonic() + self.watched_s
        while time.monotonic() < until:
            time.sleep(min(1.0, self.renewed_every_s))
            found = _owner_of(folder)
            if found is None:
                return
            if found != other:
                raise _refused(folder, other)
        say(f"that command has ended without a word; going on in {folder.uri}")

    def _renew(self) -> None:
        while not self.ended.wait(self.renewed_every_s):
            self.renewals += 1
            for folder in list(self.folders.values()):
                with suppress(UserError, OSError):  # storage that fails for a moment must not end the command
                    try:
                        found = (folder / OWNER).read_json()
                    except StorageError as error:
                        if error.transient:
                            raise
                        found = None
                    if self._is_others(found):
                        _end(folder, found)
                    else:
                        self._write(folder)

    def _write(self, folder: Location) -> None:
        (folder / OWNER).write_json({**self.me, "renewals": self.renewals})


def claim(folder: Location) -> None:
    """Own `folder` until the command ends; nothing if this process is no command. Raises UserError if another command does."""
    if Claims.current is not None:
        Claims.current.add(folder)


def _end(folder: Location, other: dict[str, Any]) -> None:
    """Ask this process to end. At the next renewal it is asked again, which ends what writes a checkpoint until then."""
    say(
        f"another command writes to {folder.uri} now ({_named(other)}): this one ends, so that neither deletes files of the "
        "other. Run it again when the other has ended"
    )
    os.kill(os.getpid(), signal.SIGTERM)


def _refused(folder: Location, other: dict[str, Any]) -> UserError:
    return UserError(
        f"another command writes to {folder.uri} now ({_named(other)}): wait until it ends, stop it, or choose another output"
    )


def _named(other: dict[str, Any]) -> str:
    return f"process {other.get('pid')} on {str(other.get('host')).partition('/')[0]}, since {other.get('since')}"


def _owner_of(folder: Location) -> dict[str, Any] | None:
    found = value_in(folder / OWNER)
    return found if isinstance(found, dict) else None


def _machine() -> str:
    """Name of this machine and of its space of process numbers: two containers may share the name."""
    with suppress(OSError):
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()
