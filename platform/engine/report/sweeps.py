"""The section of the report about a sweep: its table, parallel coordinates, heat maps and learning curves."""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from platform.engine.report.contents import RunFolder, RunMember
from platform.engine.report.plots.curves import Series, line_chart
from platform.engine.report.plots.heat import heat_map
from platform.engine.report.plots.parallel import is_logarithmic, parallel_coordinates
from platform.engine.sweep.results import groups_of, short_names
from platform.engine.sweep.trials import is_done

SHOWN_ROWS, MOST_MAPS, MOST_VALUES, BINS, NAMED_CURVES = 15, 6, 12, 6, 3


def sweep_section(folder: RunFolder) -> dict[str, Any] | None:
    """The parts of the section, or None if there is no sweep with a done trial."""
    sweep = next(iter(folder.of("tune")), None)
    rows = [row for row in folder.sweep_rows if is_done(row)]
    if sweep is None or not rows:
        return None
    metric = str(sweep.setting_of("metric") or "mAP")
    keys = list(rows[0]["point"])
    names = dict(zip(keys, short_names(keys), strict=True))
    return {
        "metric": metric,
        "states": _counts([row["state"] for row in folder.sweep_rows]),
        "over_seeds": len(groups_of(rows, metric)) < len(rows),
        "names": [names[key] for key in keys if key != "seed" or len(groups_of(rows, metric)) == len(rows)],
        "rows": table_rows(rows, metric),
        "shown": SHOWN_ROWS,
        "parallel": Markup(parallel_chart(rows, names, metric)),
        "maps": [Markup(one) for one in heat_maps(rows, names, metric)],
        "curves": learning_curves(folder.trials, rows, metric),
        "failed": [row for row in folder.sweep_rows if not is_done(row)],
    }


def table_rows(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """{"values", "mean", "spread", "seeds", "before", "note"} of each setting, best mean first. Shares in [0, 1]."""
    groups = groups_of(rows, metric)
    over_seeds = len(groups) < len(rows)
    found = []
    for own in groups:
        first = own[0]
        before = [row["start"]["mAP"] for row in own if row.get("start")]
        doubtful = sum(bool(row.get("warnings")) for row in own)
        notes = [first["reason"]] * bool(first["reason"]) + [f"{doubtful} of {len(own)} doubtful"] * bool(doubtful)
        found.append(
            {
                "values": [value_text(value) for key, value in first["point"].items() if key != "seed" or not over_seeds],
                "mean": statistics.fmean(row[metric] for row in own),
                "spread": statistics.stdev(row[metric] for row in own) if len(own) > 1 else None,
                "seeds": len(own),
                "before": statistics.fmean(before) if before else None,
                "note": "; ".join(notes),
            }
        )
    return found


def value_text(value: Any) -> str:
    """A value of a setting as text; of a path, its last two parts."""
    if isinstance(value, str):
        return "/".join(value.rstrip("/").split("/")[-2:]) or "''"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def parallel_chart(rows: list[dict[str, Any]], names: dict[str, str], metric: str) -> str:
    """Parallel coordinates of all done trials, over the settings with several values."""
    varied = [key for key in names if len({value_text(row["point"][key]) for row in rows}) > 1] or list(names)
    trials = [
        (
            {names[key]: _plain(row["point"][key]) for key in varied},
            row[metric],
            ", ".join(f"{names[key]}={value_text(row['point'][key])}" for key in names) + f": {100 * row[metric]:.1f}",
        )
        for row in rows
    ]
    return parallel_coordinates(trials, title=f"All trials: settings and {metric} in per cent", metric=metric)


def heat_maps(rows: list[dict[str, Any]], names: dict[str, str], metric: str) -> list[str]:
    """A map for every pair of settings with several values, MOST_MAPS at most. Other settings and seeds are averaged."""
    columns = {key: binned([_plain(row["point"][key]) for row in rows]) for key in names if key != "seed"}
    varied = [key for key, values in columns.items() if len(set(values)) > 1]
    found = []
    for one, other in itertools.islice(itertools.combinations(varied, 2), MOST_MAPS):
        cells: dict[tuple[Any, Any], list[float]] = {}
        for left, right, row in zip(columns[one], columns[other], rows, strict=True):
            cells.setdefault((left, right), []).append(row[metric])
        title = f"Mean {metric} in per cent by {names[one]} and {names[other]}"
        found.append(heat_map(cells, title=title, row_name=names[one], column_name=names[other]))
    return found


def binned(values: Sequence[Any]) -> list[Any]:
    """The values; if they are more than MOST_VALUES different numbers, the interval of each, named by its lower end.

    The intervals are equally wide, on the same scale as in the parallel coordinates.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric or len(set(values)) <= MOST_VALUES:
        return list(values)
    low, high = float(min(values)), float(max(values))
    edges = np.geomspace(low, high, BINS + 1) if is_logarithmic(values) else np.linspace(low, high, BINS + 1)
    places = np.clip(np.searchsorted(edges, np.asarray(values, float), "right") - 1, 0, BINS - 1)
    return [float(f"{edges[place]:.2g}") for place in places]


def learning_curves(trials: Sequence[RunMember], rows: list[dict[str, Any]], metric: str) -> Markup | None:
    """The metric of every trial after each evaluation; the best few are named, the others are faint. None without curves."""
    order = sorted(rows, key=lambda row: -row[metric])
    rank = {row["folder"].rstrip("/").rpartition("/")[2]: number for number, row in enumerate(order)}
    series = []
    for one in sorted(trials, key=lambda member: -rank.get(member.short_name, len(rank))):
        kept = [row for row in one.metrics if metric in row and math.isfinite(row[metric])]
        if len(kept) > 1 and one.short_name in rank:
            place = rank[one.short_name]
            values = [100 * row[metric] for row in kept]
            name = ", ".join(f"{key}={value_text(value)}" for key, value in zip(*_named(order[place]), strict=True))
            series.append(Series(name, list(range(len(kept))), values, style=1 + place, faint=place >= NAMED_CURVES))
    if not series:
        return None
    return Markup(line_chart(series, title=f"{metric} in per cent", x_label="evaluations", x_low=0.0, size=(1000, 320)))


def _named(row: dict[str, Any]) -> tuple[list[str], list[Any]]:
    keys = list(row["point"])
    return short_names(keys), [row["point"][key] for key in keys]


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else value_text(value)


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
