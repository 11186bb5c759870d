"""Market-1501 (Zheng et al., ICCV 2015): `0002_c1s1_000451_03.jpg` in three folders.

The example name means identity 2, camera 1. Identity -1 marks junk, which the protocol ignores and which is skipped here.
Identity 0 marks distractors, which are kept in the gallery and rejected in other folders. Cameras keep their published numbers
1..6. The counts are those of the paper and its evaluation code: 12,936 training images of 751 people, 3,368 queries, and 19,732
images in the test folder, of which 3,819 are junk.
"""

import re
from collections.abc import Callable, Sequence

from reidssl.data import three_folders
from reidssl.data.records import Aside, Record

PUBLISHED = {"train": 12_936, "query": 3_368, "gallery": 15_913}  # 13,115 + 2,798 distractors, junk left out
DISTRACTOR = 0
"""The identity of all distractors, who are many people."""
_NAMES = re.compile(r"(-1|\d{1,6})_c(\d{1,3})(?=s\d|_|\.)", re.ASCII)


def index(
    files: Sequence[str],
    read_text: Callable[[str], str] | None = None,
    expect_published: bool = True,
    aside: Aside | None = None,
) -> list[Record]:
    """The images of a Market-1501 layout, sorted by path.

    Args:
        files: paths relative to the root, which may be the data set's own folder or the one above it.
        read_text: not used here; part of the interface of all layouts.
        expect_published: give a `LayoutWarning` if the counts differ from the published ones.
        aside: filled with the images that are not used, and why. None: a `LayoutWarning` is given instead.

    Raises `LayoutError` if a folder is missing or exists twice, and if more than half of the names in a folder do not match.
    """
    example = "<identity>_c<camera>s<sequence>_<frame>_<box>.jpg"
    published = PUBLISHED if expect_published else None
    return three_folders.read(files, "Market-1501", _NAMES, example, published, aside, distractor=DISTRACTOR)
