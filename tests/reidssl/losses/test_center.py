"""Center loss against loops over images and identities."""

import pytest
import torch

from reidssl.losses.center import CenterLoss

LABELS = torch.tensor([2, 0, 2, 2, 0])


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def test_value_gradient_and_centers_equal_the_paper():
    loss, rows = CenterLoss(4, 3, rate=0.7), features().requires_grad_()
    with torch.no_grad():
        loss.centers.copy_(torch.randn(4, 3, generator=torch.Generator().manual_seed(9)))
    old = loss.centers.clone()
    value = loss(rows, LABELS)
    value.backward()
    gaps = [rows.detach()[i] - old[label] for i, label in enumerate(LABELS)]
    assert value.item() == pytest.approx(sum(float(gap @ gap) for gap in gaps) / 2 / 5, rel=1e-5)
    torch.testing.assert_close(rows.grad, torch.stack(gaps) / 5)
    assert torch.equal(loss.centers, old)  # the loss alone does not move the centers
    loss.update(rows.detach(), LABELS)
    for identity in range(4):
        own = [i for i, label in enumerate(LABELS) if label == identity]
        delta = sum((old[identity] - rows.detach()[i] for i in own), torch.zeros(3)) / (1 + len(own))
        torch.testing.assert_close(loss.centers[identity], old[identity] - 0.7 * delta)
    assert not loss.centers.requires_grad


def test_centers_do_not_depend_on_the_order_and_approach_the_mean():
    one, other, order = CenterLoss(4, 3), CenterLoss(4, 3), torch.tensor([4, 2, 0, 1, 3])
    for _ in range(60):
        one.update(features(), LABELS)
        other.update(features()[order].double(), LABELS[order])
    torch.testing.assert_close(one.centers, other.centers)
    torch.testing.assert_close(one.centers[2], features()[LABELS == 2].mean(0), atol=1e-5, rtol=1e-5)
    assert not one.centers[1].any()  # no image of that identity was seen


def test_state_goes_round_and_another_is_refused():
    one, other = CenterLoss(4, 3), CenterLoss(4, 3)
    one.update(features(), LABELS)
    other.load_state_tensors(one.state_dict())
    assert torch.equal(one.centers, other.centers)
    with pytest.raises(ValueError, match=r"shape \(4, 3\): got shape \(5, 3\)"):
        other.load_state_tensors(CenterLoss(5, 3).state_dict())
    with pytest.raises(ValueError, match="got none"):
        other.load_state_tensors({})


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 3), "num_classes and width"), ((2, 3, 1.5), r"rate must be in \[0, 1\]")]
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CenterLoss(*arguments)


def test_half_features_are_subtracted_in_single_precision():
    rows, loss = (100 + features()).bfloat16(), CenterLoss(4, 3, rate=1.0)
    exact = CenterLoss(4, 3, rate=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(20):
            loss.update(rows, LABELS)
        found = loss(rows, LABELS)
    for _ in range(20):
        exact.update(rows.float(), LABELS)
    assert found.dtype == torch.float32 and torch.equal(loss.centers, exact.centers)
    torch.testing.assert_close(found, exact(rows.float(), LABELS))


@pytest.mark.parametrize("call", [CenterLoss.forward, CenterLoss.update])
def test_labels_without_a_center_and_other_shapes_are_refused(call):
    for rows, labels, words in (
        (torch.zeros(2, 3), [0, 4], r"labels must be in \[0, 4\): got 0 to 4"),
        (torch.zeros(2, 3), [-1, 0], r"\[0, 4\): got -1 to 0"),
        (torch.zeros(2, 3), [1], r"features \(B, 3\) and labels \(B,\): got \(2, 3\) and \(1,\)"),
        (torch.zeros(2, 1), [1, 1], r"got \(2, 1\) and \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            call(CenterLoss(4, 3), rows, torch.tensor(labels))
