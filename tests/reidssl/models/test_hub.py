"""A folder for torch.hub gives the original's features in a process that has never imported this library."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from reidssl.models.exported import Embedder
from reidssl.models.hub import hub_files
from reidssl.models.reid import ReidModel
from tests.reidssl.models.test_exported import SMALL, STATISTICS, pixels, trained

CODE = """
import sys, torch
model = torch.hub.load(sys.argv[1], "reid", source="local")
vit = torch.hub.load(sys.argv[1], "vit", source="local", pretrained=False)
vit.train()(torch.zeros(2, 3, 32, 16)).sum().backward()
pixels = torch.randint(0, 256, (3, 3, 32, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
with torch.no_grad():
    features = model(pixels)
assert torch.equal(features, model(pixels.float()).detach())
assert not any(name.partition(".")[0] == "reidssl" for name in sys.modules)
print(features.tolist())
"""


@pytest.mark.parametrize(
    ("changes", "neck"),
    [({}, "after"), ({"stride": 4, "layer_scale": 0.5}, "before"), ({"stem": "patch", "stride": 4, "norm_eps": 1e-5}, "after")],
)
def test_it_loads_without_this_library(tmp_path, changes, neck):
    model = trained(dataclasses.replace(SMALL, **changes))
    files = hub_files(model, **STATISTICS, neck=neck)
    assert ("ics.py" in files) == (model.backbone.config.stem == "ics")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], cwd=tmp_path, check=True, text=True, capture_output=True)
    with torch.no_grad():
        expected = Embedder(model, **STATISTICS, neck=neck)(pixels(3))
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, atol=1e-5, rtol=0)


def test_what_has_no_place_there():
    model = ReidModel(trained(dataclasses.replace(SMALL, gem_pooling=True, num_cameras=2)).backbone)
    with pytest.raises(ValueError, match=r"the folder for torch\.hub does not have camera embeddings and GeM pooling; export it"):
        hub_files(model, **STATISTICS)
