"""What does the Catastrophic Forgetting Score keep of synthetic people, besides leaving out the planted useless images?

  python -m benchmarks.kept_people --run runs/demo

RUN is the output of platform.pipeline on synthetic people. Who and where the images show is not in the data set, but follows from
the configuration by which they were drawn. Only images of people count, not the planted ones. Three questions:

- How many of them are there among all images, as many random ones, and the selected ones?
- How much of the variance of the scores' ranks do the persons explain, and how much the scenes (one-way analysis of variance,
  eta squared)? If scores had nothing to do with them, groups of this number and size would explain the share "by chance".
- How many persons and scenes are among the selected images, among as many random ones, and among all? Counted as the exponential
  of the entropy of their shares, so that a person who is left with one image counts little.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from platform.engine.data.shards import read_manifest
from platform.engine.errors import UserError
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.engine.storage.parquet import read_columns
from reidssl.synthetic.people import SyntheticConfig, specifications

GROUPS = {"persons": "identity_seed", "scenes": "scene_seed"}


def explained(groups: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Share of the variance of values (N,) between groups (N,) of equal labels, and the share expected by chance."""
    _, of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(of, values) / counts
    between = counts @ (means - values.mean()) ** 2
    return float(between / ((values - values.mean()) ** 2).sum()), (len(counts) - 1) / (len(values) - 1)


def effective(groups: np.ndarray) -> float:
    """Effective number of groups among images with these labels (N,): exp of the entropy of the groups' shares."""
    shares = np.unique(groups, return_counts=True)[1] / len(groups)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def kept(run: Location) -> list[list[Any]]:
    """Rows for images, persons and scenes, in the order of the table's head. Raises UserError and StorageError."""
    settings = (run / "config.json").read_json()["config"]["pretrain_set"]
    if settings["kind"] != "synthetic":
        raise UserError(f"{run}: its images are of kind {settings['kind']}; only those of synthetic people have known persons")
    specs = {spec.key: spec for spec in specifications(SyntheticConfig(**settings["synthetic"]), "pretrain")}
    data = run / "data" / "pretrain"
    scores = read_scores(run / "scores", read_manifest(data))
    images = [specs[key] for key in scores["key"].to_pylist()]
    chosen = set(read_columns(run / "selection" / "index.parquet", ["key"])["key"].to_pylist())
    selected = np.array([image.key in chosen for image in images])
    random = np.random.default_rng(0).permutation(selected)
    people = np.array([not image.planted for image in images]) & scores["score"].is_valid().to_numpy()
    ranks = scores["score"].to_numpy()[people].argsort().argsort().astype(float)
    parts = (people, people & random, people & selected)
    rows: list[list[Any]] = [["images", None, None, *(int(part.sum()) for part in parts)]]
    for name, seed in GROUPS.items():
        groups = np.array([getattr(image, seed) for image in images])
        rows.append([name, *explained(groups[people], ranks), *(effective(groups[part]) for part in parts)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="output of platform.pipeline on synthetic people")
    arguments = parser.parse_args()
    try:
        rows = kept(open_storage(str(arguments.run), StorageConfig()))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print("| | variance of the ranks | by chance | all | random half | selected half |\n|---|---|---|---|---|---|")
    for name, *shares, everything, random, selected in rows:
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        cells += [f"{count:.0f}" for count in (everything, random, selected)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
