"""DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017): `0005_c2_f0046985.jpg` in three folders.

The example name means identity 5, camera 2 (1..8), frame 46985. The counts are those of the data set's description: 16,522
training images of 702 people, 2,228 queries of 702 others, and a gallery of 17,661 images that includes 408 more people as
distractors with identities of their own. The authors have withdrawn the data set and ask not to use it for new work. It is
supported to reproduce published numbers.
"""

import re
from collections.abc import Callable, Sequence

from reidssl.data import three_folders
from reidssl.data.records import Aside, Record

PUBLISHED = {"train": 16_522, "query": 2_228, "gallery": 17_661}
_NAMES = re.compile(r"(\d{1,6})_c(\d{1,3})_f\d+", re.ASCII)


def index(
    files: Sequence[str],
    read_text: Callable[[str], str] | None = None,
    expect_published: bool = True,
    aside: Aside | None = None,
) -> list[Record]:
    """The images of a DukeMTMC-reID layout, sorted by path; arguments and errors as in `market1501.index`."""
    example = "<identity>_c<camera>_f<frame>.jpg"
    return three_folders.read(files, "DukeMTMC-reID", _NAMES, example, PUBLISHED if expect_published else None, aside)
