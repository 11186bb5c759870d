"""Frozen layers, by count from the input."""

import pytest

from platform.engine.finetune.start import freeze_layers
from platform.engine.finetune.trained import frozen_norms
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from reidssl.optim import sgd_groups
from tests.tiny import TINY_VIT


@pytest.mark.parametrize("number", range(4))
def test_so_many_layers_keep_their_weights(number):
    model = ReidModel(build_vit(TINY_VIT), num_classes=3)
    freeze_layers(model, number)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    parts = {
        "backbone.patch_embed.": number < 1,
        "backbone.cls_token": number < 1,
        "backbone.pos_embed": number < 1,
        "backbone.blocks.0.": number < 2,
        "backbone.blocks.1.": number < 3,
        "backbone.norm.": True,
        "bottleneck.weight": True,
        "classifier.": True,
    }
    for part, trains in parts.items():
        own = {name for name, _ in model.named_parameters() if name.startswith(part)}
        assert own and (own <= trained if trains else not own & trained), part
    groups = sgd_groups(model.named_parameters(), 1.0, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert bool(frozen_norms(model)) == (number > 0)  # the stem has batch norms
