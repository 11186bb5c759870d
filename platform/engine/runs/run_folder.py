"""A run is a folder: its resolved configuration at the start, its summary at the end.

The summary is written last, so a folder with a summary is complete and is not done again; a folder without one is
continued. Continuing under another configuration is refused, because the result would belong to neither.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache, partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from platform.engine.config.compose import ROOT, to_plain
from platform.engine.config.paths import map_paths, same_place
from platform.engine.errors import UserError
from platform.engine.runs.json_records import read_record
from platform.engine.storage.location import Location, StorageConfig, open_storage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, SUMMARY, INPUTS = "config.json", "summary.json", "inputs.json"
# Settings that change how a run is carried out and never what it computes, at whatever level of a configuration they stand.
VOLATILE = (
    "output",
    "runtime",
    "scaling",
    "tracking",
    "storage",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_every_steps",
    "checkpoint.resume_from",
    "checkpoint.resume_position",
    "stream.segment_windows",
    "stream.max_corrupt_share",
    "max_corrupt_share",
)
PACKAGES = ("torch", "timm", "ray", "deepspeed", "faiss-cpu", "faiss-gpu", "pyarrow", "numpy")


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    location: Location
    program: str
    config: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run reported; None while it is incomplete."""
        file = self.location / SUMMARY
        return file.read_json() if file.exists() else None

    def pin(self, inputs: dict[str, Any]) -> None:
        """Hold fast what the run's inputs are (checksums, hashes of weights) for the time until it is complete.

        Raises UserError if they were others when the run began: what is there and what would be added do not belong together.
        """
        file = self.location / INPUTS
        if not file.exists():
            file.write_json(inputs)
            return
        advice = "it is written when a run begins; choose another output"
        before = read_record(file, next(iter(inputs)), str, advice)
        changed = [f"{key}: {old!r} -> {new!r}" for key, old, new in _differences(before, inputs)]
        if changed:
            raise UserError(
                f"the inputs of {self.location.uri} changed since it began ({'; '.join(changed)}): choose another "
                "output, bring the old inputs back, or delete that folder"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run complete."""
        (self.location / SUMMARY).write_json({"program": self.program, "environment": environment(), **summary})


def open_run(
    program: str, output: str, config: "DataclassInstance", storage: StorageConfig, volatile: Iterable[str] = VOLATILE
) -> Run:
    """Create or re-open the run folder `output` for `config` (a program's dataclass).

    Raises UserError listing the settings that differ if the folder belongs to a run with another configuration, or if its
    config.json is somebody else's, and StorageError if an unfinished run's folder cannot be written to.
    """
    if not output:
        raise UserError("output is empty: name the folder or bucket path of the run, e.g. output=runs/my-run")
    location = open_storage(output, storage)
    plain = to_plain(config)
    file = location / CONFIG
    if not (location / SUMMARY).exists():  # a complete run is only read
        location.prepare_output()
    if file.exists():
        stored = read_record(file, "config", dict, "that folder is not a run of this program; choose another output")
        stored = _completed(config, stored["config"])
        same = partial(map_paths, type(config), change=lambda text, key, role: same_place(text))
        ignored = [f".{name}." for name in volatile]
        differences = [
            f"{key}: {old!r} -> {new!r}"
            for key, old, new in _differences(same(stored), same(plain))
            if not any(name in f".{key}." for name in ignored)
        ]
        if differences:
            shown = "\n  ".join(differences[:12])
            raise UserError(
                f"{location.uri} holds a run with another configuration:\n  {shown}\n"
                "Choose another output, repeat the old settings, or delete that folder"
            )
    else:
        file.write_json({"program": program, "config": plain, "environment": environment()})
    return Run(location, program, plain)


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"python": sys.version.split()[0], "code": _code_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _code_version() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True, text=True, capture_output=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # shipped without its repository, e.g. as a job's working directory


def _completed(config: object, stored: Any) -> Any:
    """`stored` with the defaults of the keys it lacks: a setting that came later does not make its run another one."""
    if not (is_dataclass(config) and isinstance(stored, dict)):
        return stored
    found = dict(stored)
    for item in fields(config):
        if item.name in stored:
            found[item.name] = _completed(getattr(config, item.name), stored[item.name])
        elif item.default is not MISSING:
            found[item.name] = json.loads(json.dumps(item.default))
        elif item.default_factory is not MISSING:
            default = item.default_factory()
            settings = is_dataclass(default) and not isinstance(default, type)
            found[item.name] = to_plain(default) if settings else json.loads(json.dumps(default))
    return found


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            rows += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return rows
    return [] if old == new else [(prefix, old, new)]
