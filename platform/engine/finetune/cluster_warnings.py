"""What makes a fine-tuning without labels doubtful: clusters that are none, and epochs that trained nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

FEWEST_CLUSTERED = 0.1
"""Share of the images that are in clusters, below which there is a warning."""
LARGEST_CLUSTER = 0.8
"""Share of the clustered images in one cluster, above which there is a warning."""
NEAR_CHANCE = 0.05
"""Adjusted Rand index with the identities, below which there is a warning; 0 is chance, 1 the same groups."""
ADVICE = "another unsupervised.cluster.eps or a better checkpoint may help"


def cluster_warnings(row: Mapping[str, Any], images: int) -> list[str]:
    """Of one epoch, a clause each.

    Args:
        row: its "clusters" and "outliers" and, where known, "largest_cluster" (images) and "adjusted_rand_index".
        images: how many were clustered.
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
    return found


def untrained(rows: Sequence[Mapping[str, Any]]) -> int:
    """Epochs among the rows of `metrics.jsonl` in which nothing was trained."""
    return sum("loss" not in row for row in rows)


def run_warnings(rows: Sequence[Mapping[str, Any]], images: int) -> list[str]:
    """Of a whole run, from the rows of its `metrics.jsonl`; the clusters judged are those that it ended with.

    images: in the target's train split.
    """
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
