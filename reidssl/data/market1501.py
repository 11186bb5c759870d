"""Market-1501 (Zheng et al., ICCV 2015): `0002_c1s1_000451_03.jpg` in three folders.

The name gives identity 2, camera 1. Identity -1 marks junk, which the protocol ignores: it is set aside here. Identity 0
marks distractors, which stay in the gallery and are set aside in other folders. Cameras keep their published numbers 1..6.
The counts are those of the paper and its evaluation code: 12,936 images of 751 people to train, 3,368 queries,
and 19,732 in the test folder, of which 3,819 are junk.
"""

import re
from collections.abc import Callable, Sequence

from reidssl.data import three_folders
from reidssl.data.records import Aside, Record

PUBLISHED = {"train": 12_936, "query": 3_368, "gallery": 15_913}  # 13,115 + 2,798 distractors, junk left out
_NAMES = re.compile(r"(-1|\d{1,6})_c(\d{1,3})(?=s\d|_|\.)", re.ASCII)


def index(
    files: Sequence[str],
    read_text: Callable[[str], str] | None = None,
    expect_published: bool = True,
    aside: Aside | None = None,
) -> list[Record]:
    """The images of a Market-1501 layout, sorted by path.

    `files` are paths relative to the root, which may be the data set's own folder or the one above it.
    `read_text` is not needed here; all layouts take it. `expect_published` warns (`LayoutWarning`) when
    counts differ from the published ones. `aside` is filled with the images that are not used and why; None
    warns of them. Raises `LayoutError` when a folder is missing, there twice, or holds mostly other names.
    """
    example = "<identity>_c<camera>s<sequence>_<frame>_<box>.jpg"
    published = PUBLISHED if expect_published else None
    return three_folders.read(files, "Market-1501", _NAMES, example, published, aside, distractor=0)
