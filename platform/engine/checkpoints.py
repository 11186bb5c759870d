"""Checkpoints in object storage: published atomically, verified when read, the torn ones passed over."""

import hashlib
import io
import json
import time
from dataclasses import dataclass
from typing import Any

import torch

from platform.engine.errors import UserError
from platform.engine.storage import Location, NotFoundError

STATE, MANIFEST = "state.pt", "manifest.json"


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 500
    """Optimiser steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; older ones are deleted."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"every_steps and keep must be at least 1: got {self.every_steps}, {self.keep}")


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read and verified, and what was passed over before it."""

    position: int
    payload: dict[str, Any]
    metadata: dict[str, Any]
    torn: tuple[str, ...] = ()


class CheckpointStore:
    """`<root>/position-000000001234/` with the state and, written last, its manifest with size and checksum.

    `position` is the number of samples seen. The state is one file of tensors and plain values that
    `torch.load(..., weights_only=True)` reads.
    """

    def __init__(self, root: Location, keep: int = 2) -> None:
        self.root = root
        self.keep = keep

    def save(self, position: int, payload: dict[str, Any], metadata: dict[str, Any]) -> dict[str, float]:
        """Publish and delete what is no longer kept. Returns {"mebibytes", "seconds"}."""
        started = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        data = buffer.getvalue()
        folder = self.root / _folder(position)
        (folder / STATE).write_bytes(data)
        manifest = {"position": position, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                    "metadata": metadata}
        (folder / MANIFEST).write_json(manifest)
        complete = self._complete()
        # What lies ahead is torn, or this run would have continued from it.
        stale = [other for other in complete if other > position] + [p for p in complete if p <= position][self.keep :]
        for old in stale:
            (self.root / _folder(old) / MANIFEST).delete()  # first, so that a half-deleted one is not there
            (self.root / _folder(old)).delete()
        return {"mebibytes": len(data) / 2**20, "seconds": time.perf_counter() - started}

    def newest_position(self) -> int:
        """Samples seen at the newest readable checkpoint; 0 without one."""
        for position in self._complete():
            if self._read(position) is not None:
                return position
        return 0

    def newest(self) -> Found | None:
        """The newest checkpoint whose bytes match its manifest; None if there is none."""
        torn = []
        for position in self._complete():
            read = self._read(position)
            if read is None:
                torn.append(_folder(position))
                continue
            manifest, data = read
            payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return Found(position, payload, manifest["metadata"], tuple(torn))
        if torn:
            raise UserError(f"no checkpoint under {self.root.uri} can be read: {', '.join(torn)} do not match their "
                            "manifests. Delete that folder to start over")
        return None

    def _complete(self) -> list[int]:
        """Positions that have a manifest, newest first."""
        folders = [item.name.partition("/") for item in self.root.list()]
        return sorted((int(folder.removeprefix("position-")) for folder, _, file in folders
                       if file == MANIFEST and folder.startswith("position-")), reverse=True)

    def _read(self, position: int) -> tuple[dict[str, Any], bytes] | None:
        """(manifest, state); None if they are torn. A store that does not answer is an error, not a torn checkpoint."""
        folder = self.root / _folder(position)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            data = (folder / STATE).read_bytes()
            whole = len(data) == manifest["bytes"] and hashlib.sha256(data).hexdigest() == manifest["sha256"]
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None
        return (manifest, data) if whole else None


def _folder(position: int) -> str:
    return f"position-{position:012d}"
