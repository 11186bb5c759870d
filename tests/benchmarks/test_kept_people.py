"""What the scores keep of synthetic people: persons and scenes, counted on a run written by hand."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.kept_people import effective, explained, kept
from platform.engine.config.compose import ROOT
from platform.engine.data.shards import read_manifest
from platform.engine.selection.scores import write_scores
from platform.engine.storage.location import open_storage
from reidssl.synthetic.people import specifications
from tests.platform.report_runs import SYNTHETIC, write_data


def test_the_share_between_groups():
    groups = np.array([0, 0, 1, 1])
    assert explained(groups, np.array([1.0, 1.0, 5.0, 5.0])) == (1.0, pytest.approx(1 / 3))
    assert explained(groups, np.array([1.0, 5.0, 1.0, 5.0]))[0] == 0.0


def test_groups_are_counted_by_their_shares():
    assert effective(np.array([0, 1, 2, 3])) == pytest.approx(4.0)
    assert effective(np.array([7, 7, 7])) == pytest.approx(1.0)
    assert 1.0 < effective(np.array([0] * 99 + [1])) < 1.1


@pytest.fixture
def run(tmp_path):
    """A pipeline's folder in which the score is the person's number, and the selection has the upper half of the persons."""
    root = open_storage(str(tmp_path / "run"))
    data = write_data(tmp_path / "run" / "data" / "pretrain", "pretrain")
    specs = specifications(SYNTHETIC, "pretrain")
    persons = np.unique([spec.identity_seed for spec in specs], return_inverse=True)[1].astype(np.float32)
    keys = [spec.key for spec in specs]
    write_scores(root / "scores", read_manifest(data).files[0].name, keys, persons, np.full(len(keys), "", dtype=object))
    chosen = [key for key, person in zip(keys, persons, strict=True) if person >= SYNTHETIC.pretrain_identities / 2]
    (tmp_path / "run" / "selection").mkdir()
    pq.write_table(pa.table({"key": chosen}), tmp_path / "run" / "selection" / "index.parquet")
    settings = {"kind": "synthetic", "synthetic": asdict(SYNTHETIC)}
    (root / "config.json").write_json({"program": "pipeline", "config": {"pretrain_set": settings}})
    return tmp_path / "run"


def test_scores_of_persons_select_persons(run):
    images, persons, scenes = kept(open_storage(str(run)))
    people = sum(not spec.planted for spec in specifications(SYNTHETIC, "pretrain"))
    assert images[:4] == ["images", None, None, people] and 0 < images[5] < people and 0 < images[4] < people
    name, found, chance, everyone, random, selected = persons
    assert name == "persons" and found > 0.9 > 0.3 > chance and scenes[1] < 0.5
    assert selected <= SYNTHETIC.pretrain_identities / 2 < random <= everyone <= SYNTHETIC.pretrain_identities


def test_the_table_and_what_is_no_such_run(run, tmp_path):
    def call(folder):
        command = [sys.executable, "-m", "benchmarks.kept_people", "--run", folder]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    printed = call(run).stdout
    assert all(printed.count(f"\n| {name} | ") == 1 for name in ("images", "persons", "scenes"))
    ended = call(tmp_path / "nothing")
    assert ended.returncode == 1 and ended.stderr.startswith("error: cannot read ") and "Traceback" not in ended.stderr
    root = open_storage(str(run))
    (root / "config.json").write_json({"program": "pipeline", "config": {"pretrain_set": {"kind": "folder"}}})
    assert "only those of synthetic people have known persons" in call(run).stderr
