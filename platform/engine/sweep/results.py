"""The results of a sweep: a table with means over seeds, trials.parquet, and the weights of the best trial."""

import io
import json
import statistics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.inference.models import BEST, REID
from platform.engine.schemas.tune_settings import METRICS
from platform.engine.storage.location import Location
from platform.engine.sweep.trials import FINISHED, STOPPED, is_done

TRIALS, PARQUET = "trials.json", "trials.parquet"
SHOWN = 20
Row = dict[str, Any]


def groups_of(rows: list[Row], metric: str) -> list[list[Row]]:
    """Done trials that differ in nothing but their seed, best mean first. Without `seed` in the space, one trial a group."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if is_done(row):
            point = {key: value for key, value in row["point"].items() if key != "seed"}
            found.setdefault(json.dumps([point, row["state"]], sort_keys=True), []).append(row)
    return sorted(found.values(), key=lambda own: -statistics.fmean(row[metric] for row in own))


def best_of(rows: list[Row], metric: str) -> Row | None:
    """The best finished trial of the settings with the best mean over seeds; None if no trial is finished.

    Settings with more finished seeds win: a mean over the seeds that were not stopped early says too much.
    """
    finished = [own for own in groups_of(rows, metric) if own[0]["state"] == FINISHED]
    best = max(finished, key=len, default=[])  # the first of the longest, which are in the order of their means
    return max(best, key=lambda row: row[metric], default=None)


def write_results(location: Location, rows: list[Row]) -> None:
    """Write trials.json and trials.parquet (a row per trial; settings with values of several types as JSON text)."""
    (location / TRIALS).write_json(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    columns: dict[str, list[Any]] = {key: _column([row["point"].get(key) for row in rows]) for key in keys}
    for key in ("state", "reason", *METRICS, "clusters", "epochs", "weights", "folder"):
        columns[key] = [row.get(key) for row in rows]
    columns["start_mAP"] = [(row.get("start") or {}).get("mAP") for row in rows]
    if "seed" not in columns:
        columns["seed"] = [row.get("seed") for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    (location / PARQUET).write_bytes(sink.getvalue())


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values] if float in kinds else values
    return values if len(kinds) == 1 and not kinds & {list, dict} else [json.dumps(value) for value in values]


def export_best(location: Location, best: Row) -> Location:
    """Copy the weights of a trial to best.safetensors, which every program takes as a checkpoint."""
    target = location / BEST
    target.write_bytes(location.joinpath("trials", best["folder"].rstrip("/").rpartition("/")[2], REID).read_bytes())
    return target


def table(rows: list[Row], metric: str) -> str:
    """Text table of the done trials, best first: the varied settings and the metrics in per cent, SHOWN lines at most.

    With several seeds, a line has the mean and the sample standard deviation over them.
    """
    groups = groups_of(rows, metric)
    if not groups:
        return "no trial is finished"
    over_seeds = any(len(own) > 1 for own in groups)
    keys = [key for key in groups[0][0]["point"] if key != "seed" or not over_seeds]
    extra = ["seeds"] * over_seeds + ["clusters"] + ["note"] * any(own[0]["state"] == STOPPED for own in groups)
    lines = [[*short_names(keys), *METRICS, *extra]]
    for own in groups[:SHOWN]:
        cells = [_text(own[0]["point"][key]) for key in keys] + [_spread([row[name] for row in own]) for name in METRICS]
        more = {
            "seeds": str(len(own)),
            "clusters": f"{statistics.fmean(row['clusters'] for row in own):g}",
            "note": own[0]["reason"],
        }
        lines.append(cells + [more[name] for name in extra])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return text + (f"\n... and {len(groups) - SHOWN} more in {PARQUET}" if len(groups) > SHOWN else "")


def short_names(keys: list[str]) -> list[str]:
    """Last parts of the keys; whole keys where these would be equal."""
    last = [key.rpartition(".")[2] for key in keys]
    return [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def _spread(values: list[float]) -> str:
    """Mean in per cent, with the sample standard deviation of several values."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
