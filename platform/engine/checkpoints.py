"""Checkpoints in object storage: published atomically, verified when read, the torn ones passed over."""

import hashlib
import io
import time
from dataclasses import dataclass
from typing import Any

import torch

from platform.engine.errors import UserError
from platform.engine.storage import Location

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
        for old in self._complete()[self.keep :]:
            (self.root / _folder(old) / MANIFEST).delete()  # first, so that a half-deleted one is not there
            (self.root / _folder(old)).delete()
        return {"mebibytes": len(data) / 2**20, "seconds": time.perf_counter() - started}

    def newest_position(self) -> int:
        """Samples seen at the newest readable checkpoint; 0 without one."""
        for position in self._complete():
            if self._data(position) is not None:
                return position
        return 0

    def newest(self) -> Found | None:
        """The newest checkpoint whose bytes match its manifest; None if there is none."""
        torn = []
        for position in self._complete():
            data = self._data(position)
            if data is None:
                torn.append(_folder(position))
                continue
            manifest = (self.root / _folder(position) / MANIFEST).read_json()
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

    def _data(self, position: int) -> bytes | None:
        folder = self.root / _folder(position)
        try:
            manifest = (folder / MANIFEST).read_json()
            data = (folder / STATE).read_bytes()
        except (UserError, OSError, ValueError):
            return None
        if len(data) != manifest["bytes"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            return None
        return data


def _folder(position: int) -> str:
    return f"position-{position:012d}"
