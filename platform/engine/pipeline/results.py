"""The file results.json of a pipeline, and the table of results."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import fmean, stdev
from typing import Any

from platform.engine.errors import StorageError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import environment
from platform.engine.schemas.finetune_settings import SETTINGS
from platform.engine.schemas.pipeline_settings import INVERSE_PART, RANDOM_PART, SELECTED
from platform.engine.storage.location import Location

INITS = ("random", "full", SELECTED, RANDOM_PART, INVERSE_PART)


def seed_folder(seed: int) -> str:
    """Folder of all runs of a seed, relative to the output of a pipeline with several seeds."""
    return f"seed-{seed}"


def selection_folder(part: str) -> str:
    """Folder of the selection of a part of the images, relative to the folder of the seed."""
    return "selection" if part == SELECTED else f"selection-{part}"


class Results:
    """Keeps results.json up to date around every stage, so that it shows the state of an interrupted run."""

    def __init__(self, root: Location, seeds: Sequence[int] = ()) -> None:
        self.root, self.seeds = root, seeds
        self.file = root / "results.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            advice = "platform.pipeline makes it anew when it is not there; move the file away"
            self.stages = read_record(self.file, "stages", dict, advice)["stages"]

    def keep(self, names: Collection[str]) -> None:
        """Forget stages other than these, which an earlier command with other settings has left."""
        self.stages = {name: stage for name, stage in self.stages.items() if name in names}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context manager: records a stage as running, then as complete or failed. A stage that was complete keeps its time."""
        before, started = self.stages.get(name, {}), time.perf_counter()
        self._note(name, "running", 0.0)
        try:
            yield
        except BaseException:  # including KeyboardInterrupt
            with suppress(StorageError):  # if storage fails, the first error must be reported
                self._note(name, "failed", time.perf_counter() - started)
            raise
        keep = before.get("status") == "complete" and name != "report"
        self._note(name, "complete", before["seconds"] if keep else time.perf_counter() - started)

    def _note(self, name: str, status: str, seconds: float) -> None:
        self.stages[name] = {"status": status, "seconds": round(seconds, 1)}
        self.file.write_json(self.collect())

    def collect(self) -> dict[str, Any]:
        """All results so far, read from the summaries of the finished runs, as stored in results.json.

        With several seeds, the results of the first are at the top, `finetune` has the rows of all, and `aucs` the AUC of each.
        """
        folders = {seed: self.root / seed_folder(seed) for seed in self.seeds}
        first = next(iter(folders.values()), self.root)
        found: dict[str, Any] = {"stages": self.stages, "environment": environment(), **_of_seed(first)}
        if folders:
            found["finetune"] = [{"seed": seed, **row} for seed, root in folders.items() for row in _of_seed(root)["finetune"]]
            found["aucs"] = [_of_seed(root)["cfs"].get("auc_planted") for root in folders.values()]
        return found


def _of_seed(root: Location) -> dict[str, Any]:
    """The results of the runs below `root`."""
    found: dict[str, Any] = {"cfs": {}, "pretrain": {}, "finetune": []}
    scores, selection = _summary(root, "scores"), _summary(root, selection_folder(SELECTED))
    if scores and selection:
        found["cfs"] = {
            "total": scores["total"],
            "selected": selection["selected"],
            "auc_planted": scores.get("auc_planted"),
            "measure": scores.get("measure"),
            "proxies": scores.get("proxies"),
        }
    clusters = _summary(root, "clusters")
    if clusters:
        found["clusters"] = {name: clusters[name] for name in ("images", "clusters", "outliers")}
    full = _summary(root, "pretrain/full")
    if full:
        found["pretrain"] = {name: full[name] for name in ("images_per_second", "steps", "final_loss")}
    for setting in SETTINGS:
        for init in INITS:
            summary = _summary(root, f"finetune/{setting}-{init}")
            if summary:
                names = ("mAP", "rank1", "rank5", "rank10", "mINP", "clusters")
                found["finetune"].append(
                    {"setting": setting, "init": init}
                    | {n: summary[n] for n in names}
                    | {n: summary[n] for n in ("evaluation", "warnings", "start", "adjusted_rand_index") if n in summary}
                )  # summaries of older versions do not have these
    return found


def _summary(root: Location, name: str) -> dict[str, Any] | None:
    file = root.joinpath(name, "summary.json")
    return file.read_json() if file.exists() else None


def table(results: dict[str, Any]) -> str:
    """The results as a text table, metrics in per cent."""
    cfs, clusters, lines = results["cfs"], results.get("clusters"), [""]
    if clusters:
        lines.append(
            f"{clusters['clusters']:,} pseudo-identities and {clusters['outliers']:,} outliers among "
            f"{clusters['images']:,} images (clusters/labels.parquet)"
        )
    if cfs:
        aucs = [auc for auc in results.get("aucs", [cfs["auc_planted"]]) if auc is not None]
        auc = f", AUC against planted images {spread(aucs, '.3f')}" if aucs else ""
        lines.append(f"CFS kept {cfs['selected']:,} of {cfs['total']:,} images{auc}")
    if results["finetune"]:
        seeds = len({row.get("seed") for row in results["finetune"]})
        lines += ["", f"Per cent{f', mean ± standard deviation over {seeds} seeds' if seeds > 1 else ''}", ""]
        lines.append(f"{'setting':<12}{'init':<14}" + "".join(f"{title:>{WIDTH}}" for title, *_ in COLUMNS))
        lines += [f"{setting:<12}{init:<14}{cells}" for setting, init, cells in result_rows(results["finetune"])]
    return "\n".join(lines)


WIDTH = 13
COLUMNS = (
    ("before", lambda row: (row.get("start") or {}).get("mAP"), 100, ".1f"),
    ("mAP", lambda row: row["mAP"], 100, ".1f"),
    ("Rank-1", lambda row: row["rank1"], 100, ".1f"),
    ("Rank-5", lambda row: row["rank5"], 100, ".1f"),
    ("Rank-10", lambda row: row["rank10"], 100, ".1f"),
    ("mINP", lambda row: row["mINP"], 100, ".1f"),
    ("clusters", lambda row: row["clusters"] or None, 1, ".0f"),
    ("Rand index", lambda row: row.get("adjusted_rand_index"), 1, ".2f"),
)
"""(title, value of a row, factor, format) of each column of the table."""


def result_rows(finetuned: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(setting, initialization, cells) of each row of the table, over all seeds."""
    for setting, init in dict.fromkeys((row["setting"], row["init"]) for row in finetuned):
        own = [row for row in finetuned if (row["setting"], row["init"]) == (setting, init)]
        cells = ""
        for _, value, factor, form in COLUMNS:
            known = [factor * found for row in own if (found := value(row)) is not None]
            cells += f"{spread(known, form):>{WIDTH}}"
        yield setting, init, cells


def spread(values: Sequence[float], form: str) -> str:
    """The mean of values and, for several, their sample standard deviation, in a format such as ".1f"; "-" for none."""
    if not values:
        return "-"
    mean = format(fmean(values), form)
    return f"{mean} ± {format(stdev(values), form)}" if len(values) > 1 else mean
