"""docs/own.md: its blocks run in order, its layout reads what they draw, and its objective learns and exports."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.ingest.sources import open_source
from platform.engine.schemas.ingest_settings import IngestConfig

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "own.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the Python blocks define, run in order in an empty folder; `folder` is that folder."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    defined: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, (language, code) in enumerate(BLOCKS):
            if language == "python":
                exec(compile(code, f"docs/own.md, block {number}", "exec"), defined)
    return defined | {"folder": folder}


def test_the_pattern_reads_identities_cameras_and_splits(names, monkeypatch):
    monkeypatch.chdir(names["folder"])
    (command,) = (code for language, code in BLOCKS if language == "bash")
    config = load_config(IngestConfig, "ingest", shlex.split(command.replace("\\\n", " "))[3:])
    source = open_source(config.raw, config.storage)
    found = {each.key: each for unit in source.plan(0).units for each in source.read(unit)}
    expected = {record.key: record for record in names["records"]}
    assert found.keys() == expected.keys() and not any(each.error for each in found.values())
    for key, each in found.items():
        assert (each.pid, each.camid) == expected[key][1:3]
        assert each.split == ("train" if expected[key].split == "train" else "gallery")


def test_the_index_gives_every_split(names):
    assert all(names["counts"].values())
    assert sum(names["counts"].values()) == len(list((names["folder"] / "recordings").rglob("*.png"))) == len(names["people"])
    queries = [record[1:3] for record in names["records"] if record.split == "query"]
    assert queries and len(set(queries)) == len(queries)
    with pytest.raises(Exception, match="no <day>/gate-"):
        names["index"](["a.jpg"])


def test_the_objective_learns_and_exports(names):
    assert names["losses"][-1] < names["losses"][0] and all(np.isfinite(names["losses"]))
    features = names["backbone"](torch.zeros(2, 3, 64, 32))
    assert not names["backbone"].training and features.shape[0] == 2 and torch.isfinite(features).all()
