"""One step over several pieces has the gradients of the whole batch."""

from functools import partial

import pytest
import torch

from platform.engine.finetune.pieces import StepFeatures, cut, rows_to_compute
from reidssl.losses.identity import identity_loss
from reidssl.losses.triplet import triplet_loss
from reidssl.models.drop_path import draw_by_step
from reidssl.models.model_config import JigsawConfig, VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])


def test_pieces_are_all_rows_in_order_and_differ_by_one_at_most():
    for batch, pieces in ((64, 8), (12, 4), (7, 3), (8, 8), (3, 5), (1, 1)):
        found = cut(batch, pieces)
        assert len(found) == pieces and [row for piece in found for row in range(batch)[piece]] == list(range(batch))
        sizes = [piece.stop - piece.start for piece in found]
        assert max(sizes) - min(sizes) <= 1
    assert [rows_to_compute(piece) for piece in cut(1, 2)] == [slice(0, 1), slice(0, 1)]


def step(pieces: int, rate: float = 0.3, parts: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, features after the neck, gradients) of one step on 8 images of 3 people, in float64."""
    model = (
        ReidModel(
            build_vit(
                VitConfig(width=16, depth=2, heads=2, patch_size=16, image_size=(64, 32), stem="patch", drop_path=rate), seed=1
            ),
            num_classes=3,
            jigsaw=JigsawConfig(parts=parts),
        )
        .double()
        .train()
    )
    drop_paths = draw_by_step(model)
    images = torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)).double()
    features = StepFeatures(cut(8, pieces))

    def begin(piece: slice) -> torch.Tensor:
        torch.manual_seed(5)
        for layer in drop_paths:
            layer.place = rows_to_compute(piece).start, 8
        return images[rows_to_compute(piece)]

    with torch.no_grad():
        features.gather([model.features(begin(piece)) for piece in features.pieces])
    for piece in features.pieces:
        output = model(begin(piece), among_all=partial(features.among_all, piece))
        loss = identity_loss(output.logits, LABELS) + triplet_loss(output.before, LABELS)
        loss = loss + sum(identity_loss(part.logits, LABELS) for part in output.parts)
        (loss / pieces).backward()
    return (
        loss.detach(),
        output.after.detach(),
        {name: value.grad for name, value in model.named_parameters() if value.grad is not None},
    )


@pytest.mark.parametrize(("pieces", "parts"), [(2, 0), (3, 0), (8, 0), (11, 0), (3, 2)])
def test_a_cut_step_has_the_loss_and_gradients_of_the_whole(pieces, parts):
    """8 images are cut into pieces of 4, of 3 and 2, of 1, and with three empty pieces; drop path is on."""
    (loss, after, gradients), (expected_loss, expected_after, expected) = step(pieces, parts=parts), step(1, parts=parts)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    torch.testing.assert_close(after, expected_after, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == expected.keys() and len(gradients) > 20
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=name)
    assert not torch.allclose(step(1, rate=0.0)[2]["backbone.cls_token"], expected["backbone.cls_token"])


def test_an_uncut_batch_is_left_as_it_is():
    """The result is bit-identical. The memory layout stays the same too, because the last digits of sums depend on it."""
    features = torch.randn(6, 4, requires_grad=True)
    assert StepFeatures(cut(6, 1)).among_all(slice(0, 6), features) is features
