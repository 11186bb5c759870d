"""Pseudo-labels of a large set on one machine, with the approximate search: time, memory and recall.

  python -m benchmarks.million                     50,000 images
  python -m benchmarks.million --full              a million, 384-dimensional
  python -m benchmarks.million --num 200000 --actors 2 4   also with 2 and with 4 Ray actors

Random features with 40 images per identity, 15 cameras and half the noise of the other benchmarks; k1 30, k2 6, eps 0.6,
search=ivf. There is no other side, because the dense algorithm would need N x N arrays (4 TB at a million). With actors, the
memory is that of the clustering process alone.
"""

import argparse
from collections.abc import Iterator

from benchmarks.measure import measure, print_machine, print_one
from benchmarks.people import unlabeled
from benchmarks.table import Row, memory_of

SIZES = {"tiny": 2000, "quick": 50_000, "full": 1_000_000}


def labels(arguments):
    """This project's pseudo-labels, with the search in this process or in Ray actors."""
    from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels

    config = ClusterConfig(search=arguments.get("search", "ivf"))
    pseudo_labels(unlabeled(2000, 20, 3)[0], config)
    features, identities, _ = unlabeled(arguments["num"], 40, 15, noise=0.5)
    actors = arguments["actors"]
    if actors:
        from platform.engine.clustering.sharded_labels import sharded_labels
        from platform.engine.clustering.sharded_neighbors import NeighborActorsConfig
        from platform.engine.inference.features import array_parts
        from platform.engine.runtime.ray_session import RuntimeConfig, connect

        gib = features.nbytes / 2**30
        connect(RuntimeConfig(num_cpus=actors, object_store_gib=2 * gib + 2))
        shared = NeighborActorsConfig(actors=actors)

    def work():
        if not actors:
            return pseudo_labels(features, config)
        return sharded_labels(array_parts(features, actors), config, shared)

    def check(found):
        from reidssl.clustering.agreement import agreement

        seconds = {name: round(value, 1) for name, value in found.seconds.items()}
        return {
            "seconds of each step": seconds,
            "recall at 30 (1,000 images)": None if found.recall is None else round(found.recall, 4),
            "clusters": found.num_clusters,
            "outliers": found.num_outliers,
            "adjusted Rand index": round(agreement(found.labels, identities), 4),
        }

    return work, check


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: a key of SIZES."""
    run = measure(__spec__.name, "labels", {"num": SIZES[size], "actors": 0})
    recall = run.numbers["recall at 30 (1,000 images)"]
    yield Row(f"{SIZES[size]:,} x 384 to labels, approximate search", run.seconds, "s", f"{memory_of(run)}; recall {recall}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million images")
    parser.add_argument("--num", type=int, default=0, help="images (default 50,000)")
    parser.add_argument("--actors", type=int, nargs="*", default=[], help="numbers of Ray actors to try as well")
    arguments = parser.parse_args()
    num = arguments.num or SIZES["full" if arguments.full else "quick"]
    print_machine()
    for actors in [0, *arguments.actors]:
        name = f"{actors} Ray actors" if actors else "one process"
        print_one(f"{num:,} x 384 to labels, {name}", measure(__spec__.name, "labels", {"num": num, "actors": actors}))


if __name__ == "__main__":
    main()
