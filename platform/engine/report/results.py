"""The rows of the result table: one for each evaluated run, or the mean over runs that differ in their seed."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from platform.engine.pipeline.results import INITS
from platform.engine.report.contents import RunFolder, RunMember
from platform.engine.runs.run_folder import VOLATILE
from platform.engine.schemas.finetune_settings import SETTINGS
from reidssl.choices import RETRIEVAL_METRICS

TITLES = {"supervised": "Supervised", "uda": "UDA", "usl": "USL"}


def setting_title(setting: str) -> str:
    """The setting as a title, e.g. "USL"; unknown names are unchanged."""
    return TITLES.get(setting, setting)


@dataclass
class ResultRow:
    """A row of the result table. Metrics are in [0, 1]."""

    setting: str
    init: str
    run: str
    values: dict[str, float]
    clusters: int | None
    reranked: float | None = None
    expansion: int = 0
    """Gallery images of the query expansion that all metrics include; 0: no expansion."""
    gain: float | None = None
    """mAP minus the mAP from random weights in the same setting; None if that is not known."""
    start: float | None = None
    """mAP of the start, before fine-tuning; None if it was not evaluated."""
    spread: float | None = None
    """Sample standard deviation of the mAP over the seeds; None for one run. All values of the row are means over the seeds."""
    seeds: int = 1
    doubtful: bool = False
    """Whether the run has warnings, e.g. clusters near chance."""
    first_of: int = 0
    """In the first row of a setting: number of rows of this setting; 0 in the others."""


def result_rows(folder: RunFolder) -> list[ResultRow]:
    """A row for every evaluated run except the proxies, ordered by setting and initialization."""
    rows = [
        _over_seeds([_row(one.setting, one.init, one.name, one.summary or {}) for one in own])
        for own in _same_but_seed(
            [
                one
                for one in [*folder.members, *folder.repeats]
                if one.program == "finetune" and one.summary and "mAP" in one.summary and not one.name.startswith("proxy/")
            ]
        )
    ]
    known = {(row.setting, row.init) for row in rows}
    rows += [
        _row(entry["setting"], entry["init"], RESULTS_ONLY, entry)
        for entry in folder.results.get("finetune") or []
        if "mAP" in entry and (entry["setting"], entry["init"]) not in known
    ]
    rows.sort(key=lambda row: (place(row.setting, SETTINGS), row.setting, place(row.init, INITS), row.init, row.run))
    for setting in dict.fromkeys(row.setting for row in rows):
        own = [row for row in rows if row.setting == setting]
        own[0].first_of = len(own)
        baseline = next((row.values["mAP"] for row in own if row.init == "random"), None)
        for row in own:
            row.gain = None if baseline is None or row.init == "random" else row.values["mAP"] - baseline
    return rows


def _same_but_seed(members: list[RunMember]) -> list[list[RunMember]]:
    """The runs in groups of equal settings: only the seed, and what does not change results, may differ.

    The runs of a pipeline's seeds start from checkpoints of the same seed, which have the same name in its folder.
    """
    found: dict[str, list[RunMember]] = {}
    for one in members:
        settings = {key: value for key, value in one.config.items() if key not in ("seed", *VOLATILE)}
        settings["checkpoint"] = re.sub(r"/seed-\d+/", "/", str(settings.get("checkpoint") or ""))
        found.setdefault(json.dumps([one.setting, one.init, settings], sort_keys=True, default=str), []).append(one)
    return list(found.values())


def _over_seeds(rows: list[ResultRow]) -> ResultRow:
    """One row with the means of `rows`."""
    if len(rows) == 1:
        return rows[0]
    first, starts = rows[0], [row.start for row in rows if row.start is not None]
    clusters = [row.clusters for row in rows if row.clusters is not None]
    reranked = [row.reranked for row in rows if row.reranked is not None]
    return replace(
        first,
        values={name: fmean(row.values[name] for row in rows) for name in first.values},
        clusters=round(fmean(clusters)) if clusters else None,
        reranked=fmean(reranked) if reranked else None,
        start=fmean(starts) if starts else None,
        spread=stdev(row.values["mAP"] for row in rows),
        seeds=len(rows),
        doubtful=any(row.doubtful for row in rows),
    )


RESULTS_ONLY = "results.json"


def _row(setting: str, init: str, run: str, values: dict[str, Any]) -> ResultRow:
    clusters = values.get("clusters")
    shares = {name: float(values[name]) for name in RETRIEVAL_METRICS if values.get(name) is not None}
    return ResultRow(
        setting,
        init,
        run,
        shares,
        None if clusters is None else int(clusters),
        (values.get("reranked") or {}).get("mAP"),
        expansion_of(values),
        start=(values.get("start") or {}).get("mAP"),
        doubtful=bool(values.get("warnings")),
    )


def expansion_of(values: dict[str, Any]) -> int:
    """Number of images of the query expansion that the metrics in `values` include; 0: no expansion."""
    if "query_expansion" in values:
        return int(values["query_expansion"] or 0)
    recorded = (values.get("evaluation") or {}).get("expansion") or {}
    return int(recorded.get("images", 0))


def place(name: str, order: Iterable[str]) -> int:
    """Position of a name in `order`; after the end if it is not there."""
    listed = list(order)
    return listed.index(name) if name in listed else len(listed)
