"""Warnings about useless clusters."""

import re

import pytest

from platform.engine.finetune.cluster_warnings import cluster_warnings, run_warnings, untrained

GOOD = {"clusters": 20, "outliers": 10, "largest_cluster": 9, "adjusted_rand_index": 0.6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 0, "outliers": 100}, r"fewer than two clusters \(all 100 images are outliers\).*nothing.*cluster\.eps"),
        (
            {"clusters": 1, "outliers": 3, "largest_cluster": 97},
            r"fewer than two clusters \(all 97 clustered images are in one\)",
        ),
        ({"outliers": 92, "largest_cluster": 2}, r"only 8 of 100 images are in clusters"),
        ({"largest_cluster": 80}, r"one cluster holds 80 of the 90 clustered images"),
        ({"adjusted_rand_index": 0.01}, r"hardly better than chance \(adjusted Rand index 0\.010\)"),
    ],
)
def test_what_makes_an_epoch_doubtful(changes, message):
    found = cluster_warnings(GOOD | changes, 100)
    assert len(found) == 1 and re.search(message, found[0])


def test_a_good_epoch_is_not_remarked_nor_one_without_labels():
    assert cluster_warnings(GOOD, 100) == []
    assert cluster_warnings({"clusters": 20, "outliers": 10, "label_stability": 0.9}, 100) == []


def test_labels_that_change_matter_only_where_the_identities_are_not_known():
    row = {"clusters": 20, "outliers": 10, "label_stability": 0.1}
    assert "label stability 0.100" in cluster_warnings(row, 100)[0]
    assert cluster_warnings(row | {"adjusted_rand_index": 0.6}, 100) == []


def test_a_run_that_trained_nothing_or_a_part():
    nothing, something, labeled = {"clusters": 0, "outliers": 100}, GOOD | {"loss": 1.0}, {"loss": 2.0}
    assert run_warnings([labeled, something, something], 100) == []
    assert untrained([labeled, something, nothing]) == 1
    found = run_warnings([nothing] * 3, 100)
    assert found[0] == "nothing was trained: the figures are those of the start"
    assert found[1].startswith("3 of 3 unsupervised epochs trained nothing") and len(found) == 2
    assert run_warnings([labeled, nothing], 100)[0] == (
        "the unsupervised phase trained nothing: the figures are those of the phase before it"
    )
    some = run_warnings([nothing, something], 100)
    assert len(some) == 1 and some[0].startswith("1 of 2 unsupervised epochs trained nothing")
    late = run_warnings([something, something | {"adjusted_rand_index": 0.0}], 100)
    assert len(late) == 1 and late[0].startswith("at the end the clusters agree with the identities hardly")
    assert run_warnings([], 100) == ["nothing was trained: the figures are those of the start"]
