"""Read a run folder: its runs, their metrics, the data sets they used, and what is missing.

The folder may be of a pipeline (data/, proxy/, scores/, selection/, pretrain/, finetune/), finished or not, or of a single
program. Unreadable content becomes a note on the page. Only a folder without any run is an error.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from platform.engine.data.shards import MANIFEST, Manifest, read_manifest
from platform.engine.errors import StorageError, UserError
from platform.engine.pipeline.results import INITS, seed_folder
from platform.engine.runs.metrics import read_metrics
from platform.engine.schemas.finetune_settings import SETTINGS
from platform.engine.schemas.pipeline_settings import CONTROLS, INVERSE_PART, RANDOM_PART
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.engine.sweep.results import TRIALS, best_of

RESULTS, CONFIG, SUMMARY = "results.json", "config.json", "summary.json"
INSIDE_RUNS = {"ray_train", "checkpoints", "parts", "data"}  # folders that are never runs themselves
EXPECTED = {
    "proxy/source": "the source proxy",
    "proxy/target": "the target proxy",
    "scores": "the scores of the images",
    "selection": "the selected subset",
    "pretrain/full": "pre-training on all images",
    "pretrain/selected": "pre-training on the selected images",
    f"pretrain/{RANDOM_PART}": "pre-training on a random part",
    f"pretrain/{INVERSE_PART}": "pre-training on the images with the lowest scores",
}
EXPECTED_WITHOUT_TARGET = {"pretrain/full": EXPECTED["pretrain/full"], "clusters": "the pseudo-identities"}
DATA_ROLES = ("pretrain", "source", "target")


@dataclass(frozen=True, eq=False)
class RunMember:
    """A run of a program."""

    name: str
    """Path in the folder, e.g. finetune/usl-full; for a single run, the name of the folder."""
    location: Location
    program: str
    config: dict[str, Any]
    environment: dict[str, str]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]

    @property
    def short_name(self) -> str:
        """Short name for charts: full, selected, proxy, usl-full, ..."""
        return "proxy" if self.name == "proxy/source" else self.name.rpartition("/")[2]

    @property
    def setting(self) -> str:
        """Setting of a fine-tuning run: supervised, uda or usl; "" for other programs."""
        return str(self.config.get("setting", ""))

    @property
    def init(self) -> str:
        """Initialization of fine-tuning: random, full, selected, ...; in a sweep, the trial's name; else the checkpoint's."""
        setting, _, init = self.name.rpartition("/")[2].partition("-")
        if init and setting == self.setting:
            return init
        if self.name.startswith("trials/"):
            return self.short_name
        return str(self.setting_of("checkpoint") or "random").rstrip("/").rpartition("/")[2]

    def setting_of(self, *keys: str) -> Any:
        """A value of the configuration; None if there is no such key, as in folders of older versions."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class DataSet:
    """A data set that a run used."""

    role: str
    location: Location
    manifest: Manifest


@dataclass
class RunFolder:
    """All data of the page."""

    location: Location
    members: list[RunMember]
    data: dict[str, DataSet]
    results: dict[str, Any] = field(default_factory=dict)
    repeats: list[RunMember] = field(default_factory=list)
    """The runs of a pipeline with several seeds, but for those of the first seed, which are in `members`."""
    trials: list[RunMember] = field(default_factory=list)
    """The trials of a sweep with results. `members` has only the best of them."""
    sweep_rows: list[dict[str, Any]] = field(default_factory=list)
    """The records of trials.json."""
    is_pipeline: bool = False
    """True for the folder of a pipeline, even an incomplete one; False for single runs."""
    files: list[tuple[str, int]] = field(default_factory=list)
    """(name, bytes) of every file in the folder."""
    notes: list[str] = field(default_factory=list)
    """Sentences about missing or unreadable content."""

    def of(self, program: str, under: str = "") -> list[RunMember]:
        """The runs of a program, in the order of `members`. under: only names with this prefix."""
        return [one for one in self.members if one.program == program and one.name.startswith(under)]

    @property
    def has_target(self) -> bool:
        """Whether there is a target set; False only for a pipeline without one."""
        target = next((one.setting_of("target_set") for one in self.of("pipeline")), None)
        return target is None or target.get("kind") == "synthetic" or bool(target.get("path"))

    def named(self, name: str) -> RunMember | None:
        """The run with this name; None if there is none."""
        return next((one for one in self.members if one.name == name), None)


def read_folder(uri: str, storage: StorageConfig) -> RunFolder:
    """Read the run folder at `uri`. Raises UserError if it has no run."""
    location = open_storage(uri, storage)
    if not location.exists():
        raise UserError(f"{location.uri} does not exist: name the folder of a run, e.g. run=runs/demo")
    if location.is_file():
        raise UserError(f"{location.uri} is a file: name the folder of a run, e.g. run=runs/demo")
    files = [(item.name, item.bytes) for item in location.list()]
    names = [name for name, _ in files]
    found = RunFolder(location, [], {}, files=files)
    for name in names:
        folder, _, file = name.rpartition("/")
        if file == CONFIG and folder.count("/") <= 2 and not INSIDE_RUNS & set(folder.split("/")):
            member = _read_member(location, folder, found.notes)
            if member:
                found.members.append(member)
    found.results = _read_results(location, found.notes) if RESULTS in names else {}
    found.is_pipeline = bool(found.results) or any(one.program == "pipeline" or one.name in EXPECTED for one in found.members)
    if not found.members and not found.results:
        raise UserError(
            " ".join([f"no run in {location.uri} can be read.", *found.notes])
            if found.notes
            else f"there is no run in {location.uri}: neither {CONFIG} nor {RESULTS}, here or in its folders. Name "
            "the output of platform.pipeline, platform.pretrain or platform.finetune"
        )
    if TRIALS in names:
        _set_trials_apart(found)
    _set_seeds_apart(found)
    found.members.sort(key=_story_order)
    _find_data(found, names, storage)
    _note_missing(found)
    return found


def _set_seeds_apart(found: RunFolder) -> None:
    """Show the runs of the first seed as those of the pipeline, and move those of the others to `repeats`."""
    seeds = next((one.setting_of("seeds") for one in found.of("pipeline")), None) or []
    for place, seed in enumerate(seeds):
        own = [one for one in found.members if one.name.startswith(f"{seed_folder(seed)}/")]
        found.members = [one for one in found.members if one not in own]
        renamed = [replace(one, name=one.name.partition("/")[2]) for one in own]
        (found.repeats if place else found.members).extend(renamed)
    if len(seeds) > 1:
        rest = ", ".join(str(seed) for seed in seeds[1:])
        found.notes.append(f"The charts show seed {seeds[0]}; the table of results has the means over this and seed {rest}.")


def _set_trials_apart(found: RunFolder) -> None:
    """Move the trials of a sweep from `members` to `trials`, except the best: the charts of single runs cannot show them all."""
    try:
        rows = (found.location / TRIALS).read_json()
        if not isinstance(rows, list):
            raise UserError(f"{(found.location / TRIALS).uri} is of type {type(rows).__name__}, not a list")
    except UserError as error:
        found.notes.append(f"The trials cannot be read: {error}")
        return
    found.sweep_rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("point"), dict)]
    metric = next((str(one.setting_of("metric")) for one in found.of("tune")), "mAP")
    best = best_of(found.sweep_rows, metric)
    kept = best["folder"].rstrip("/").rpartition("/")[2] if best else ""
    found.trials = [one for one in found.members if one.name.startswith("trials/")]
    found.members = [one for one in found.members if one not in found.trials or one.short_name == kept]
    doubtful = sum(bool(row.get("warnings")) for row in found.sweep_rows)
    if doubtful:
        found.notes.append(f"Doubtful: {doubtful} of {len(found.sweep_rows)} trials; the table of the sweep marks them.")


def _story_order(member: RunMember) -> tuple[Any, ...]:
    """Sort key: the order of the pipeline's stages, then of settings and initializations, then of names."""
    order = [
        "",
        "proxy",
        "scores",
        "selection",
        f"selection-{RANDOM_PART}",
        f"selection-{INVERSE_PART}",
        "pretrain",
        "clusters",
        "finetune",
    ]
    place = order.index(member.name.split("/")[0]) if member.name.split("/")[0] in order else 0
    setting, init = (
        names.index(name) if name in names else len(names) for name, names in ((member.setting, SETTINGS), (member.init, INITS))
    )
    return (place, setting, init, member.name) if member.name.startswith("finetune/") else (place, 0, 0, member.name)


def _read_member(root: Location, folder: str, notes: list[str]) -> RunMember | None:
    location = root / folder if folder else root
    try:
        about = (location / CONFIG).read_json()
        if not isinstance(about, dict) or "program" not in about:
            return None
        file = location / SUMMARY
        return RunMember(
            folder or root.name,
            location,
            str(about["program"]),
            _object(about.get("config") or {}, f"'config' in {(location / CONFIG).uri}"),
            _object(about.get("environment") or {}, f"'environment' in {(location / CONFIG).uri}"),
            _object(file.read_json(), file.uri) if file.exists() else None,
            read_metrics(location),
        )
    except (UserError, ValueError) as error:
        notes.append(f"The run {folder or root.name} cannot be read: {error}")
        return None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{name} is of type {type(value).__name__} where an object belongs: bring the file back, or repeat the run "
            "in another folder"
        )
    return value


def _read_results(location: Location, notes: list[str]) -> dict[str, Any]:
    try:
        results = (location / RESULTS).read_json()
    except StorageError as error:
        notes.append(f"The results cannot be read: {error}")
        return {}
    return results if isinstance(results, dict) else {}


def _find_data(found: RunFolder, names: list[str], storage: StorageConfig) -> None:
    """Find the data sets: first inside the folder, then those that the configurations of the runs name."""
    for role in DATA_ROLES:
        if f"data/{role}/{MANIFEST}" in names:
            _add_data(found, role, found.location.joinpath("data", role))
    for one in found.members:
        if one.program == "pretrain":
            named = {"pretrain": one.setting_of("data", "uri")}
        elif one.program in ("score", "select", "cluster"):
            named = {"pretrain": one.setting_of("data")}
        elif one.program == "finetune":
            named = {"target": one.setting_of("target_set"), "source": one.setting_of("source_set")}
        else:
            continue
        for role, uri in named.items():
            if isinstance(uri, str) and uri and role not in found.data:
                try:
                    _add_data(found, role, open_storage(uri, storage))
                except StorageError as error:
                    found.notes.append(f"The {role} data set cannot be read: {error}")
    found.data = {role: found.data[role] for role in DATA_ROLES if role in found.data}
    found.notes[:] = dict.fromkeys(found.notes)  # removes duplicates: several runs may name the same data set


def _add_data(found: RunFolder, role: str, location: Location) -> None:
    try:
        found.data[role] = DataSet(role, location, read_manifest(location))
    except StorageError as error:
        found.notes.append(f"The {role} data set cannot be read: {error}")


def _note_missing(found: RunFolder) -> None:
    if found.is_pipeline:
        pipeline = next(iter(found.of("pipeline")), None)
        # A pipeline without proxy samples uses the full pre-training as its source proxy.
        own_proxy = pipeline is None or pipeline.setting_of("cfs", "proxy_samples") != 0
        controls = (pipeline.setting_of("cfs", "controls") if pipeline else None) or []
        without = {f"{name}_part" for name in CONTROLS if name not in controls}
        for name, meaning in (EXPECTED if found.has_target else EXPECTED_WITHOUT_TARGET).items():
            wanted = own_proxy if name == "proxy/source" else name.removeprefix("pretrain/") not in without
            if found.named(name) is None and wanted:
                found.notes.append(f"Not there: {meaning} ({name}).")
        for setting in pipeline.config.get("settings", SETTINGS) if pipeline else SETTINGS:
            absent = [init for init in INITS if init not in without and found.named(f"finetune/{setting}-{init}") is None]
            if absent:
                found.notes.append(f"Not there: fine-tuning, {setting}, from {', '.join(absent)}.")
    for one in found.members:
        if one.summary is None and one.program != "pipeline":
            reached = f"; its log ends at {_reached(one)}" if one.metrics else ""
            found.notes.append(f"Not finished: {one.name}{reached}.")
        found.notes += [f"Doubtful: {one.name}: {warning}." for warning in (one.summary or {}).get("warnings") or []]


def _reached(member: RunMember) -> str:
    last = member.metrics[-1]
    return f"epoch {int(last['epoch'])}" if "epoch" in last else f"{int(last['position']):,} images seen"
