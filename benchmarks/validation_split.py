"""A set to choose settings on, without the test people: some people of the train part become queries and gallery.

  python -m benchmarks.validation_split --data cuhk03 --output cuhk03-val

DATA and OUTPUT are in the layout of Market-1501. The new train part has the other people. Of each person that is held out, the
first image of each camera is a query and the rest are the gallery. The queries and the gallery of DATA are not used.
"""

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from reidssl.checks import within
from reidssl.data.market1501 import index
from reidssl.data.records import LayoutError, Record

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def roles_of(records: list[Record], share: float, seed: int) -> list[str]:
    """The role of each record of a train part: "train", "query" or "gallery".

    share: of the people to hold out, at least one. People who were seen by one camera only stay in the train part, because a
    query needs an image of another camera.
    """
    cameras = Counter(pid for pid, _ in {(record.pid, record.camid) for record in records})
    people = sorted({record.pid for record in records})
    several = [pid for pid in people if cameras[pid] > 1]
    held_out = {int(pid) for pid in np.random.default_rng(seed).permutation(several)[: max(1, round(share * len(people)))]}
    seen: set[tuple[int, int]] = set()
    roles = []
    for record in records:
        first = (record.pid, record.camid) not in seen
        seen.add((record.pid, record.camid))
        roles.append("train" if record.pid not in held_out else "query" if first else "gallery")
    return roles


def split(data: Path, output: Path, share: float, seed: int) -> dict[str, int]:
    """Copy the images of the train part of `data` to their new folders below `output`; returns the images of each role."""
    files = [path.relative_to(data).as_posix() for path in data.glob("**/*") if path.is_file()]
    records = [record for record in index(files, expect_published=False) if record.split == "train"]
    roles = roles_of(records, share, seed)
    for record, role in zip(records, roles, strict=True):
        folder = output / FOLDERS[role]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / record.key, folder)
    return dict(Counter(roles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the set")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--share", type=float, default=0.25, help="share of the people to hold out (default 0.25)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the people (default 0)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"--output must be a new folder: '{arguments.output}' exists")
    try:
        within("(0, 1)", share=arguments.share)
        print(split(arguments.data, arguments.output, arguments.share, arguments.seed))
    except (LayoutError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
