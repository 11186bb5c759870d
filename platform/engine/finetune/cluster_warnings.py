"""Warnings of unsupervised fine-tuning: degenerate clusters, and epochs without training."""

from collections.abc import Mapping, Sequence
from typing import Any

FEWEST_CLUSTERED = 0.1
"""Warn if a smaller share of the images is in clusters."""
LARGEST_CLUSTER = 0.8
"""Warn if one cluster holds a larger share of the clustered images."""
NEAR_CHANCE = 0.05
"""Warn if the adjusted Rand index with the identities is smaller; 0 is chance level, 1 is perfect agreement."""
UNSTABLE = 0.3
"""Warn if the labels agree less with those of the epoch before, where the identities are not known; 1 is the same clusters."""
ADVICE = "another unsupervised.cluster.eps or a better checkpoint may help"


def cluster_warnings(row: Mapping[str, Any], images: int) -> list[str]:
    """Warnings about the clusters of one epoch, each a clause of text.

    Args:
        row: log of the epoch: "clusters", "outliers" and, if known, "largest_cluster" (in images), "adjusted_rand_index"
            and "label_stability".
        images: number of images, outliers included.
    """
    clusters, clustered = int(row["clusters"]), images - int(row["outliers"])
    if clusters < 2:
        what = f"all {clustered:,} clustered images are in one" if clusters else f"all {images:,} images are outliers"
        return [f"fewer than two clusters ({what}): nothing to contrast, this epoch trained nothing; {ADVICE}"]
    found = []
    if clustered < FEWEST_CLUSTERED * images:
        found.append(f"only {clustered:,} of {images:,} images are in clusters; {ADVICE}")
    if row.get("largest_cluster", 0) > LARGEST_CLUSTER * clustered:
        found.append(f"one cluster holds {int(row['largest_cluster']):,} of the {clustered:,} clustered images; {ADVICE}")
    if row.get("adjusted_rand_index", 1.0) < NEAR_CHANCE:
        found.append(
            f"the clusters agree with the identities hardly better than chance (adjusted Rand index "
            f"{row['adjusted_rand_index']:.3f}); {ADVICE}"
        )
    if "adjusted_rand_index" not in row and row.get("label_stability", 1.0) < UNSTABLE:
        found.append(
            f"the clusters have little in common with those of the epoch before (label stability "
            f"{row['label_stability']:.3f}); {ADVICE}"
        )
    return found


def untrained(rows: Sequence[Mapping[str, Any]]) -> int:
    """Number of epochs without training among the rows of `metrics.jsonl`. Epoch 0, the evaluation of the start, is none."""
    return sum("loss" not in row for row in rows if row.get("epoch") != 0)


def run_warnings(rows: Sequence[Mapping[str, Any]], images: int) -> list[str]:
    """Warnings about a whole run, from the rows of its `metrics.jsonl`. Only the clusters of the last epoch are checked.

    images: number of images in the train split of the target.
    """
    rows = [row for row in rows if row.get("epoch") != 0]
    clustered = [row for row in rows if "clusters" in row]
    without, found = untrained(rows), []
    if without == len(rows):
        found.append("nothing was trained: the figures are those of the start")
    elif without and without == len(clustered):
        found.append("the unsupervised phase trained nothing: the figures are those of the phase before it")
    if without:
        found.append(f"{without} of {len(clustered)} unsupervised epochs trained nothing, for want of two clusters; {ADVICE}")
    if clustered and "loss" in clustered[-1]:
        found += [f"at the end {warning}" for warning in cluster_warnings(clustered[-1], images)]
    return found
