"""The file results.json of a pipeline, and the table of results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from platform.engine.errors import StorageError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import environment
from platform.engine.storage.location import Location

SETTINGS, INITS = ("supervised", "uda", "usl"), ("random", "full", "selected", "control")


class Results:
    """Keeps results.json up to date around every stage, so that it shows the state of an interrupted run."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.file = root / "results.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            advice = "platform.pipeline makes it anew when it is not there; move the file away"
            self.stages = read_record(self.file, "stages", dict, advice)["stages"]

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
        """All results so far, read from the summaries of the finished runs, as stored in results.json."""
        found: dict[str, Any] = {"stages": self.stages, "cfs": {}, "pretrain": {}, "finetune": [], "environment": environment()}
        scores, selection = self._summary("scores"), self._summary("selection")
        if scores and selection:
            found["cfs"] = {
                "total": scores["total"],
                "selected": selection["selected"],
                "auc_planted": scores.get("auc_planted"),
                "measure": scores.get("measure"),
                "proxies": scores.get("proxies"),
            }
        clusters = self._summary("clusters")
        if clusters:
            found["clusters"] = {name: clusters[name] for name in ("images", "clusters", "outliers")}
        full = self._summary("pretrain/full")
        if full:
            found["pretrain"] = {name: full[name] for name in ("images_per_second", "steps", "final_loss")}
        for setting in SETTINGS:
            for init in INITS:
                summary = self._summary(f"finetune/{setting}-{init}")
                if summary:
                    names = ("mAP", "rank1", "rank5", "rank10", "mINP", "clusters")
                    found["finetune"].append(
                        {"setting": setting, "init": init}
                        | {n: summary[n] for n in names}
                        | {n: summary[n] for n in ("evaluation", "warnings", "start") if n in summary}
                    )  # summaries of older versions do not have these
        return found

    def _summary(self, name: str) -> dict[str, Any] | None:
        file = self.root.joinpath(name, "summary.json")
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
        auc = "" if cfs["auc_planted"] is None else f", AUC against planted images {cfs['auc_planted']:.3f}"
        lines.append(f"CFS kept {cfs['selected']:,} of {cfs['total']:,} images{auc}")
    if results["finetune"]:
        lines += [
            "",
            f"{'setting':<12}{'init':<10}{'before':>8}{'mAP':>7}{'Rank-1':>8}{'Rank-5':>8}{'Rank-10':>9}{'mINP':>7}{'clusters':>10}",
        ]
    for row in results["finetune"]:
        lines.append(
            f"{row['setting']:<12}{row['init']:<10}{_before(row):>8}{100 * row['mAP']:>7.1f}{100 * row['rank1']:>8.1f}"
            f"{100 * row['rank5']:>8.1f}{100 * row['rank10']:>9.1f}{100 * row['mINP']:>7.1f}"
            f"{row['clusters'] or '-':>10}"
        )
    return "\n".join(lines)


def _before(row: dict[str, Any]) -> str:
    """mAP of the start in per cent; "-" for runs without this evaluation."""
    start = row.get("start")
    return f"{100 * start['mAP']:.1f}" if start else "-"
