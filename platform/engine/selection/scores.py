"""The scores of a data set in storage: one Parquet file (key, score, problem) for each shard, and their summary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.data.parts import PARTS, PROBLEM, write_table
from platform.engine.data.shards import Manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import read_columns
from reidssl.selection.agreement import auc


def write_scores(output: Location, name: str, keys: list[str], scores: np.ndarray, problems: np.ndarray) -> None:
    """Write one row for every key of the shard; the score is null for keys with a problem."""
    write_table(
        output / PARTS / name,
        pa.table({"key": keys, "score": pa.array(scores, mask=(problems != "").astype(bool)), PROBLEM: problems.tolist()}),
    )


def read_scores(output: Location, manifest: Manifest, columns: Sequence[str] = ("key", "score")) -> pa.Table:
    """Table of these columns of every image in the order of the shards; the score is null for images that cannot be decoded."""
    return pa.concat_tables(read_columns(output / PARTS / entry.name, columns) for entry in manifest.files)


def summarize(output: Location, root: Location, manifest: Manifest) -> dict[str, Any]:
    """Distribution of the scores. If the data has a `planted` column, also the AUC with which they rank planted images low.

    Images whose features are not finite have no number as score; they are counted and left out of the figures. Raises UserError
    if no score is a number.
    """
    column = read_scores(output, manifest, ["score"])["score"]
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)  # null: NaN
    scored = np.isfinite(values)
    scores = values[scored]
    undefined = len(column) - column.null_count - len(scores)
    if undefined:
        say(f"score: {undefined:,} images have no score, because a proxy gave them no finite feature: look for a diverged proxy")
    if not len(scores):
        raise UserError(f"no image of {root.uri} has a score: the proxies gave no finite feature")
    summary: dict[str, Any] = {
        "total": len(column),
        "undefined_scores": undefined,
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "quantiles": [float(q) for q in np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])],
    }
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)[scored]
        if planted.any() and not planted.all():
            summary["auc_planted"] = float(auc(scores, ~planted))
    return summary
