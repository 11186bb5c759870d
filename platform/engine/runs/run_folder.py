"""The folder of a run: its resolved configuration is written at the start, its summary at the end.

The summary is written last. A folder with a summary is therefore complete and is not repeated; a folder without one is
continued. It is an error to continue with another configuration, because the result would belong to neither.
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
from platform.engine.data.shards import MANIFEST
from platform.engine.errors import UserError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.owner import claim
from platform.engine.secrets import hidden
from platform.engine.storage.location import Location, StorageConfig, open_storage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, SUMMARY, INPUTS = "config.json", "summary.json", "inputs.json"
# Settings, at any level of a configuration, that change how a run is executed but not its results. They may differ on continuing.
VOLATILE = (
    "output",
    "runtime",
    "scaling",
    "tracking",
    "probe",
    "storage",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_every_steps",
    "checkpoint.resume_from",
    "checkpoint.resume_position",
    "stream.segment_windows",
    "stream.max_corrupt_share",
    "pool.actors",
    "pool.batch",
    "pool.cpus_per_actor",
    "pool.gpus_per_actor",
    "pool.compile",
    "pool.max_corrupt_share",
    "max_corrupt_share",
    "save_every_steps",
    "start_features",
)
PACKAGES = ("torch", "timm", "ray", "deepspeed", "faiss-cpu", "faiss-gpu", "pyarrow", "numpy")


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    location: Location
    program: str

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as stored when the run began, without secrets; {} if none is stored."""
        file = self.location / CONFIG
        return read_record(file, "config", dict, "it is written when a run begins")["config"] if file.exists() else {}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if the run is incomplete."""
        file = self.location / SUMMARY
        return file.read_json() if file.exists() else None

    def pin(self, inputs: dict[str, Any]) -> None:
        """Record the inputs of the run (checksums, hashes of weights) when it begins, and check them when it continues.

        Raises UserError if the inputs have changed since the run began: old and new results would not belong together.
        """
        file = self.location / INPUTS
        if not file.exists():
            file.write_json(inputs)
            return
        advice = "it is written when a run begins; choose another output"
        before = read_record(file, next(iter(inputs)), str, advice)
        changed = [f"{key}: {old!r} -> {new!r}" for key, old, new in differences(before, inputs)]
        if changed:
            raise UserError(
                f"the inputs of {self.location.uri} changed since it began ({'; '.join(changed)}): choose another "
                "output, bring the old inputs back, or delete that folder"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, which marks the run complete."""
        (self.location / SUMMARY).write_json({"program": self.program, "environment": environment(), **summary})


def open_run(
    program: str,
    output: str,
    config: "DataclassInstance",
    storage: StorageConfig,
    volatile: Iterable[str] = VOLATILE,
    begin: bool = True,
) -> Run:
    """Create or re-open the run folder `output` for `config` (the dataclass of a program). Secrets are not stored.

    Args:
        volatile: keys of the settings that may differ from the stored configuration.
        begin: store the configuration of a new run. False: not yet, other settings may still follow.

    Raises UserError if the folder belongs to a run with another configuration (it lists the differences) or its config.json is
    foreign, if it holds a data set, or if another command writes to it. Raises StorageError if the folder of an unfinished run
    cannot be written to.
    """
    if not output:
        raise UserError("output is empty: name the folder or bucket path of the run, e.g. output=runs/my-run")
    location = open_storage(output, storage)
    plain = hidden(to_plain(config))
    file = location / CONFIG
    if not (location / SUMMARY).exists():  # a complete run is only read, so its folder may be read-only
        location.prepare_output()
    if file.exists():
        stored = read_record(file, "config", dict, "that folder is not a run of this program; choose another output")
        stored = hidden(_completed(config, stored["config"]))  # older versions stored secrets
        same = partial(map_paths, type(config), change=lambda text, key, role: same_place(text))
        ignored = [f".{name}." for name in volatile]
        changes = [
            f"{key}: {old!r} -> {new!r}"
            for key, old, new in differences(same(stored), same(plain))
            if not any(name in f".{key}." for name in ignored)
        ]
        if changes:
            shown = "\n  ".join(changes[:12])
            raise UserError(
                f"{location.uri} holds a run with another configuration:\n  {shown}\n"
                "Choose another output, repeat the old settings, or delete that folder"
            )
    elif (location / MANIFEST).exists():
        raise UserError(f"{location.uri} holds a data set ({MANIFEST}), no run: choose another output")
    if not (location / SUMMARY).exists():
        claim(location)
    if begin and not file.exists():
        file.write_json({"program": program, "config": plain, "environment": environment()})
    return Run(location, program)


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions of Python, the code and the packages that a result depends on."""
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
        return "unknown"  # the code was shipped without its repository, e.g. as the working directory of a job


def _completed(config: object, stored: Any) -> Any:
    """`stored` with the defaults of missing keys, so that runs made before a setting existed can still be continued."""
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


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs; None for a missing value."""
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            rows += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return rows
    return [] if old == new else [(prefix, old, new)]
