"""Images that cannot be decoded are counted, printed and listed; too many of them stop the pass."""

import numpy as np
import pytest

from platform.engine.data.set_aside import LISTED, SAID, SetAside, most_corrupt, problems_of
from platform.engine.errors import UserError
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.retrieval_settings import PoolConfig
from platform.engine.stream.order import StreamConfig


def test_one_is_never_too_many_unless_none_may_be():
    assert [most_corrupt(share, total) for share, total in ((0.01, 90), (0.01, 1000), (0.0, 1000), (0.1, 90))] == [1, 10, 0, 9]


@pytest.mark.parametrize("settings", [FinetuneConfig, PoolConfig, StreamConfig])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_no_more_than_all(settings, share):
    with pytest.raises(ValueError, match=r"^max_corrupt_share must be in \[0, 1\]"):
        settings(max_corrupt_share=share)


def test_counted_said_and_listed(capsys):
    problems = problems_of([f"{index}.jpg" for index in range(200)], ["torn" if index < 150 else "" for index in range(200)])
    assert problems[0] == "image '0.jpg' cannot be decoded (torn)" and problems[150] == ""
    set_aside = SetAside("here", 1000, 0.2, "pool.max_corrupt_share")
    batches = [{"problem": part, "key": index} for index, part in enumerate(np.array_split(problems, 4))]
    assert [batch["key"] for batch in set_aside.watch(batches)] == [0, 1, 2, 3]
    assert capsys.readouterr().out.count("set aside: image") == SAID
    assert set_aside.summary()["corrupt_images"] == 150 and len(set_aside.summary()["corrupt"]) == LISTED


def test_too_many_and_all_of_them():
    set_aside = SetAside("here", 100, 0.02, "pool.max_corrupt_share")
    assert set_aside.add(["a", "", "b"]) == ["a", "b"]
    with pytest.raises(
        UserError,
        match=r"3 of the 100 images of here cannot be decoded, more than pool.max_corrupt_share allows "
        r"\(2\): a; b; c\. Ingest the data set again, or raise pool.max_corrupt_share",
    ):
        set_aside.add(["c"])
    with pytest.raises(UserError, match="none of the 1 images of here can be decoded: a"):
        SetAside("here", 1, 1.0, "max_corrupt_share").add(["a"])
