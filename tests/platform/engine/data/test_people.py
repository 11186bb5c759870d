"""Who is who in a data set: distractors, and people of the training and of the test part with equal numbers."""

import numpy as np
import pytest

from platform.engine.data.people import DISTRACTOR, each_apart, people, read_people
from platform.engine.data.shards import Manifest, read_manifest, read_rows
from platform.engine.storage.location import open_storage
from tests.fixtures_shards import with_labels

PIDS = np.array([5, 5, 5, 7, 0, 0, -1], np.int32)
SPLITS = ["train", "query", "gallery", "gallery", "gallery", "gallery", "gallery"]


def of_kind(kind: str) -> Manifest:
    return Manifest([], source={"kind": kind, "path": ""})


@pytest.mark.parametrize("kind", ["msmt17", "cuhk03", "dukemtmc", "market1501"])
def test_equal_numbers_to_train_and_to_test_on_are_different_people(kind):
    found = people(of_kind(kind), PIDS, SPLITS)
    assert found[0] != found[1] == found[2] != found[3] and found[-1] == -1
    assert (found[4:6] == DISTRACTOR).all() if kind == "market1501" else found[4] == found[5] >= 0


@pytest.mark.parametrize("kind", ["folder", "webdataset", "synthetic", ""])
def test_elsewhere_a_number_is_one_person_in_all_splits(kind):
    assert people(of_kind(kind), PIDS, SPLITS).tolist() == PIDS.tolist()


def test_without_splits_numbers_stay():
    assert people(of_kind("market1501"), PIDS, None).tolist() == [5, 5, 5, 7, DISTRACTOR, DISTRACTOR, -1]


def test_a_selection_with_its_own_shards_keeps_the_kind_of_its_images():
    selected = Manifest([], source={"kind": "selection", "path": "runs/market"}, arguments={"raw": {"kind": "market1501"}})
    assert (people(selected, PIDS, SPLITS) == people(of_kind("market1501"), PIDS, SPLITS)).all()
    assert people(Manifest([], source={"kind": "selection"}), PIDS, SPLITS).tolist() == PIDS.tolist()


def test_distractors_apart_are_a_person_each():
    found = each_apart(np.array([4, DISTRACTOR, -1, DISTRACTOR, 9]))
    assert found[[0, 2, 4]].tolist() == [4, -1, 9] and len(set(found.tolist())) == 5 and (found[[1, 3]] > 9).all()
    assert each_apart(np.full(3, DISTRACTOR)).tolist() == [0, 1, 2]


def test_people_come_with_the_rows_asked_for(tiny_labeled, tmp_path):
    market = with_labels(
        tiny_labeled, open_storage(str(tmp_path)), lambda row, key, split, pid, camid: (row % 3, 0), source={"kind": "market1501"}
    )
    table, found = read_people(market, ["key", "camid"])
    assert table.column_names == ["key", "camid"] and table["key"].to_pylist() == read_rows(tiny_labeled)["key"].to_pylist()
    splits = read_rows(market, ["split"])["split"].to_pylist()
    assert found.tolist() == people(read_manifest(market), np.arange(72) % 3, splits).tolist()
    assert len(np.unique(found)) == 1 + 2 * 2  # distractors; two numbers, each for a person to train on and one to test on
