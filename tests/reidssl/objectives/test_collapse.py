"""Collapse is detected in collapsed objectives and not in new or healthy ones; the advice names existing settings."""

import dataclasses
import math
import re

import pytest
import torch

from reidssl.models.model_config import VitConfig
from reidssl.objectives import NAMES, ObjectiveConfig, build_objective
from reidssl.objectives.base import Progress
from reidssl.objectives.collapse import CollapseMonitor, signs
from reidssl.objectives.dino import DinoConfig
from reidssl.objectives.dino_mim import DinoMimConfig
from reidssl.objectives.moby import MobyConfig
from reidssl.objectives.moco_v3 import MocoV3Config

VIT = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)
IMAGES = 8
HEALTHY = {"teacher_entropy": 2.0, "target_information": 0.8, "feature_std": 0.1, "center_norm": 1.0, "logit_norm": 3.0}


def config(name: str) -> ObjectiveConfig:
    head = {"out_dim": 64, "hidden": 32, "bottleneck": 8}
    return ObjectiveConfig(
        name=name,
        dino=DinoConfig(**head),
        dino_mim=DinoMimConfig(**head),
        moco_v3=MocoV3Config(out_dim=8, hidden=16),
        moby=MobyConfig(out_dim=8, hidden=16, queue_size=16),
    )


def logged(objective, same_image: bool) -> dict[str, float]:
    """Terms of an objective after its center (or queue) has settled, on different images or on copies of one image."""
    crops = [torch.randn(IMAGES, 3, 32, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    if same_image:
        crops = [crops[0][:1].expand(IMAGES, -1, -1, -1)] * 2
    with torch.no_grad():
        for _ in range(100):  # 1 - 0.9^100: the center has converged
            output = objective(objective.student, crops, Progress(100, 100, 1000))
            objective.update(output.statistics, output.rows)
    return {name: float(value) for name, value in output.terms.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_model_is_fine_and_one_that_sees_no_difference_is_not(name):
    chosen = config(name)
    choices = chosen.entropy_choices(IMAGES)
    assert signs(logged(build_objective(VIT, chosen), same_image=False), name, choices, VIT.width) == {}
    found = signs(logged(build_objective(VIT, chosen), same_image=True), name, choices, VIT.width)
    assert {"features", "indifferent"} <= found.keys()
    assert ("center" in found) is name.startswith("dino")


def test_one_prototype_for_all_is_told_from_indifference():
    sharp = dataclasses.replace(config("dino").dino, center_momentum=1.0, teacher_temperature=0.001)  # no centering
    objective = build_objective(VIT, ObjectiveConfig(name="dino", dino=sharp))
    terms = logged(objective, same_image=True)
    found = signs(terms, "dino", 64, VIT.width)
    assert "one_prototype" in found and "indifferent" not in found
    assert "objective.dino.centering=sinkhorn_knopp" in found["one_prototype"]


def test_information_is_the_part_of_the_entropy_that_images_explain():
    """Four images that are each certain of their own prototype have an information of ln 4; uniform ones have 0."""
    objective = build_objective(VIT, config("dino"))
    output = objective(objective.student, [torch.randn(4, 3, 32, 16) for _ in range(2)], Progress(100, 100, 1000))
    targets = ((objective.teacher([torch.zeros(4, 3, 32, 16)]).logits) / 0.04).softmax(-1)
    assert torch.equal(targets[0], targets[1])
    assert 0 <= output.terms["target_information"] <= math.log(8)
    for logits, expected in ((100.0 * torch.eye(4, 64).repeat(2, 1), math.log(4)), (torch.zeros(8, 64), 0.0)):
        same = objective.student([torch.zeros(4, 3, 32, 16)] * 2)._replace(logits=logits)
        terms = objective.distil(same, same, 2, Progress(100, 100, 1000)).terms
        assert float(terms["target_information"]) == pytest.approx(expected, abs=1e-5)


def test_what_was_seen_is_said():
    found = signs(HEALTHY | {"teacher_entropy": 4.158}, "dino", 64, 24)
    assert "4.158 of at most ln 64 = 4.159 nats" in found["indifferent"]
    found = signs(HEALTHY | {"feature_std": 0.001, "center_norm": 2.9998}, "dino", 64, 24)
    assert "0.001, evenly spread features have 0.2" in found["features"] and "99.99% of the logits' norm" in found["center"]
    assert signs(HEALTHY, "dino", 64, 24) == {} == signs({}, "moby", 64, 24)


@pytest.mark.parametrize("name", NAMES)
def test_advice_names_settings_that_exist(name):
    bad = {"teacher_entropy": math.log(64), "target_information": 0.0, "feature_std": 0.0, "center_norm": 3.0, "logit_norm": 3.0}
    kinds = [bad, bad | {"teacher_entropy": 1.0}]
    if not name.startswith("dino"):
        kinds = [{"teacher_entropy": math.log(64), "feature_std": 0.0}]
    for terms in kinds:
        for text in signs(terms, name, 64, 24).values():
            for section, key in re.findall(r"objective\.(\w+)\.(\w+)", text):
                assert section == name and hasattr(getattr(ObjectiveConfig(), section), key), key


def test_a_warning_comes_once_after_some_rows_and_again_after_it_was_gone():
    monitor = CollapseMonitor("dino", 64, 24, patience=3)
    alike = HEALTHY | {"feature_std": 0.0}
    assert [len(monitor(terms)) for terms in [alike, alike, HEALTHY, alike, alike, alike, alike, HEALTHY]] == [0] * 5 + [1, 0, 0]
    assert [len(monitor(alike)) for _ in range(4)] == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="patience must be at least 1: got 0"):
        CollapseMonitor("dino", 64, 24, patience=0)
