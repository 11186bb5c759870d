"""docs/library.md: its blocks run in order, and each has at most ten lines."""

import re
from pathlib import Path

import pytest
import torch

from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.dino import DinoConfig

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Everything that the blocks define when they run one after the other in an empty folder."""
    torch.manual_seed(0)
    defined: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for title, code in BLOCKS:
            exec(compile(code, f"docs/library.md, {title}", "exec"), defined)
    return defined


def test_all_blocks_are_seen():
    assert len(BLOCKS) == GUIDE.count("```python") == GUIDE.count("\n## ") >= 9


@pytest.mark.parametrize(("title", "code"), BLOCKS)
def test_ten_lines_each(title, code):
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert 1 <= len(lines) <= 10 and all(len(line) <= 130 for line in lines)


def test_what_they_say(names):
    assert names["vit"].config.image_size == (96, 32)
    assert [tuple(crop.shape) for crop in names["crops"]] == [(8, 3, 64, 32)] * 2 + [(8, 3, 32, 16)] * 4
    assert torch.isfinite(names["output"].loss) and not names["backbone"].training
    assert 0 < names["optimizer"].param_groups[0]["lr"] < 5e-4
    assert [record.split for record in names["train"]] == ["train"] * 24 and names["people_images"].shape == (24, 3, 64, 32)
    assert names["loss"].requires_grad and len(names["batch"]) == 8
    assert names["found"].num_clusters == 12 and names["found"].num_outliers == 0
    assert names["metrics"].mAP == 1.0  # the people are well separated
    assert len(names["kept"]) == 60 and names["scores"].min() > 0.5
    assert torch.allclose(names["embeddings"].norm(dim=1), torch.ones(8), atol=1e-5)
    assert names["description"]["model_args"]["img_size"] == [64, 32]


def test_the_step_is_one(names):
    """All parameters except the frozen last layer moved, and then the center and the teacher."""
    objective, start = (
        names["objective"],
        build_objective(names["config"], ObjectiveConfig(name="dino", dino=DinoConfig(out_dim=256, hidden=64))),
    )
    moved = {
        name for name, value in objective.student.named_parameters() if not torch.equal(value, start.student.get_parameter(name))
    }
    assert {name for name, value in objective.student.named_parameters() if value.requires_grad} - moved == {
        "head.last_layer.weight_v"
    }
    assert objective.center.any()
    for name, value in objective.teacher.named_parameters():
        expected = torch.lerp(start.teacher.get_parameter(name), objective.student.get_parameter(name), 1 - 0.996)
        torch.testing.assert_close(value, expected.detach())
