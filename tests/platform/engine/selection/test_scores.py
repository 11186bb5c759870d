"""Scores that are no numbers: counted, named and left out of the figures."""

import numpy as np
import pytest

from platform.engine.data.shards import FileEntry, Manifest
from platform.engine.errors import UserError
from platform.engine.schemas.score_settings import ScoreConfig
from platform.engine.selection.measuring import publish
from platform.engine.selection.scores import summarize, write_scores
from platform.engine.storage.location import open_storage

NAME, KEYS = "shard-00000.parquet", ["a", "b", "c", "d"]
MANIFEST = Manifest([FileEntry(NAME, 4, 1, "", [4])])


def test_the_summary_is_of_the_scores_that_are_numbers(tmp_path, capsys):
    location = open_storage(str(tmp_path))
    problems = np.array(["", "", "", "broken"], object)
    write_scores(location, NAME, KEYS, np.array([0.25, np.nan, 0.75, 0.0], np.float32), problems)
    found = summarize(location, location, MANIFEST)
    assert (found["total"], found["undefined_scores"], found["mean"], found["quantiles"][0]) == (4, 1, 0.5, 0.25)
    assert "score: 1 images have no score, because a proxy gave them no finite feature" in capsys.readouterr().out
    write_scores(location, NAME, KEYS, np.full(4, np.nan, np.float32), problems)
    with pytest.raises(UserError, match=r"no image of .* has a score: the proxies gave no finite feature"):
        summarize(location, location, MANIFEST)


@pytest.mark.parametrize("measure", ["group_cka", "group_neighborhood"])
def test_a_measure_of_groups_names_the_image_without_a_finite_feature(tmp_path, measure):
    source, target = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    target[2, 1] = np.inf
    columns = {
        "key": np.array(KEYS, object),
        "problem": np.array(["", "broken", "", ""], object),
        "source": source,
        "target": target,
    }
    with pytest.raises(UserError, match=f"{measure} compares images, and a proxy gave 1 of the 3 images of {NAME} .* first 'c'"):
        publish(ScoreConfig(measure=measure), open_storage(str(tmp_path)), NAME, columns)
