"""The rate of platform.score: against the tightest loop with the same models, two proxies against one, and two sizes.

  python -m benchmarks.scoring            4,096 images of 64 x 32 and a tiny ViT
  python -m benchmarks.scoring --full     2,048 images of 256 x 128 and ViT-S

Both sides read the same shards from local files and compute the cosine of the features of both models for every image. This
project runs platform.score with one actor of one thread for each core, and reads and decodes in Ray tasks beside them. The loop
is ordinary PyTorch in one process with all cores: it reads and decodes a row group, then runs both models on it. A second loop
runs the models alone, on images that are decoded beforehand. Rates are those after the first shards, so neither the start of
Ray nor the loading of the models counts; the time before them is reported beside them. The rate of one proxy is that of the
same actors with one model. The same shards are also scored from an S3 server on this machine (moto in its own process, which
shares the cores), and with --full by 2 and 4 actors on a cluster of as many nodes on this machine; they share the same cores, so
the rate shows what the nodes cost. The measures of groups are timed on random features, at two sizes.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import scoring_sides
from benchmarks.measure import arguments_of, measure, print_machine
from benchmarks.s3 import s3_server, upload
from benchmarks.scoring_sides import cores, make_models, make_shards
from benchmarks.table import Row, show

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num": 2048,
        "size": (64, 32),
        "width": 32,
        "depth": 1,
        "heads": 2,
        "patch_size": 16,
        "rows": 16,
        "features": 4096,
        "nodes": (2,),
    },
    "quick": {
        "num": 4096,
        "size": (64, 32),
        "width": 128,
        "depth": 3,
        "heads": 4,
        "patch_size": 8,
        "rows": 64,
        "features": 16384,
        "nodes": (),
    },
    "full": {
        "num": 2048,
        "size": (256, 128),
        "width": 384,
        "depth": 12,
        "heads": 6,
        "patch_size": 16,
        "rows": 64,
        "features": 65536,
        "nodes": (2, 4),
    },
}


def run(side: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a side, from a process of its own."""
    return measure(scoring_sides.__name__, side, arguments).numbers


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: a key of SIZES."""
    given = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        make_shards(folder, given)
        make_models(folder, given)
        common = {"folder": folder, "data": "shards", "rows": given["rows"], "size": list(given["size"])}
        whole = run("ours", common)
        height, width = given["size"]
        about = f"{given['num']:,} images of {height} x {width}, two models of width {given['width']}, {cores()} cores"
        yield Row("scoring, platform.score", whole["rate"], "images/s", f"{about}; first shard after {whole['first']:.1f} s")
        yield from _loops(common, whole)
        two, one = (run("actors", common | {"models": models}) for models in (2, 1))
        yield Row("scoring, the actors with two proxies", two["rate"], "images/s", "")
        note = f"two proxies take {one['rate'] / two['rate']:.2f} times one"
        yield Row("scoring, the actors with one proxy", one["rate"], "images/s", note)
        yield _beside(whole, run("ours", common | {"data": "twice"}), "twice the images")
        with s3_server() as endpoint:
            upload(Path(folder, "shards"), endpoint)
            yield _beside(whole, run("ours", common | {"endpoint": endpoint}), "from an S3 server")
        for nodes in given["nodes"]:
            yield _beside(whole, run("ours", common | {"nodes": nodes}), f"{nodes} actors on {nodes} nodes")
    yield from _measures(given["features"])


def _loops(common: dict[str, Any], whole: dict[str, Any]) -> Iterator[Row]:
    for label, decoded in (("with reading and decoding", False), ("images decoded beforehand", True)):
        found = run("loop", common | {"decoded": decoded})
        means = f"mean scores {whole['mean']:.6f} and {found['mean']:.6f}"
        note = f"platform.score has {whole['rate'] / found['rate']:.2f} of it; {means}"
        yield Row(f"scoring, loop {label}", found["rate"], "images/s", note)


def _beside(whole: dict[str, Any], other: dict[str, Any], label: str) -> Row:
    note = f"{other['rate'] / whole['rate']:.2f} of the first; mean score {other['mean']:.6f}"
    return Row(f"scoring, platform.score {label}", other["rate"], "images/s", note)


def _measures(num: int) -> Iterator[Row]:
    """The measures of groups on `num` random features, and on twice as many."""
    for name in ("group_neighborhood", "group_cka"):
        once, twice = (measure(scoring_sides.__name__, "groups", {"measure": name, "num": num * times}) for times in (1, 2))
        note = f"twice as many images take {twice.seconds / once.seconds:.2f} times as long"
        yield Row(f"scoring, measure {name}", num / once.seconds, "images/s", note)


def main() -> None:
    print_machine()
    for row in rows("full" if arguments_of(__doc__).full else "quick"):
        show(*row)


if __name__ == "__main__":
    main()
