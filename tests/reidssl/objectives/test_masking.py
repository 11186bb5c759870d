"""Masks of patches: number and shape of the masked patches, and reproducibility."""

import numpy as np
import pytest
import torch

from reidssl.objectives.masking import block_mask, patch_masks


@pytest.mark.parametrize("grid", [(16, 8), (24, 8), (4, 2), (1, 5)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_exactly_the_wanted_number(grid, share):
    count = round(share * grid[0] * grid[1])
    for seed in range(20):
        mask = block_mask(np.random.default_rng(seed), grid, count)
        assert mask.shape == grid and mask.dtype == bool and mask.sum() == count


def edges(mask: np.ndarray) -> int:
    """Number of neighboring pairs with one masked patch: few for blocks, many for scattered patches."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_masks_are_blocks_all_over_the_image():
    masks = np.stack([block_mask(np.random.default_rng(seed), (16, 8), 40) for seed in range(300)])
    scattered = np.stack([np.random.default_rng(seed).permutation(128).reshape(16, 8) < 40 for seed in range(300)])
    assert np.mean([edges(mask) for mask in masks]) < 0.6 * np.mean([edges(mask) for mask in scattered])
    assert masks.mean(0).min() > 0.03  # corners are masked less often, but not never
    assert masks.mean(0).max() < 0.6


def test_shapes_of_blocks_follow_the_aspect():
    """Four patches form one block: a square, or with aspect 1/4 also a row or a column."""
    for aspect, shapes in ((1.0, {(2, 2)}), (0.25, {(1, 4), (4, 1), (2, 2)})):
        masks = [block_mask(np.random.default_rng(seed), (16, 8), 4, aspect) for seed in range(60)]
        assert {(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in masks} >= shapes
        if aspect == 1.0:
            assert all(mask.any(1).sum() == mask.any(0).sum() == 2 for mask in masks)


def test_of_a_batch():
    masks = patch_masks(7, 12, (16, 8), share=0.5, ratio=(0.1, 0.5))
    counts = masks.hidden.sum(1)
    wanted = sorted(round((0.1 + 0.4 * (number + 0.5) / 6) * 128) for number in range(6))
    assert sorted(counts[counts > 0].tolist()) == wanted and (counts == 0).sum() == 6
    assert torch.equal(masks.hidden.flatten().nonzero().squeeze(1), masks.places)
    of_image = masks.places // 128
    torch.testing.assert_close(masks.weights, 1 / counts[of_image] / 12)
    again, other = (patch_masks(seed, 12, (16, 8), 0.5, (0.1, 0.5)) for seed in (7, 8))
    assert torch.equal(again.hidden, masks.hidden) and torch.equal(again.weights, masks.weights)
    assert not torch.equal(other.hidden, masks.hidden) and len(other.places) == len(masks.places)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    patch_masks(1, 4, (4, 2), 1.0, (0.1, 0.5))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_small_batches_and_grids_still_have_something_to_guess_and_to_see():
    masks = patch_masks(0, 1, (2, 1), share=0.1, ratio=(0.01, 0.02))
    assert masks.hidden.sum() == 1
    masks = patch_masks(0, 3, (2, 2), share=1.0, ratio=(0.9, 0.99))
    assert masks.hidden.sum(1).tolist() == [3, 3, 3]


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"count must be in \[0, 8\] on a grid of 4 x 2: got 9"):
        block_mask(np.random.default_rng(0), (4, 2), 9)
    with pytest.raises(ValueError, match="aspect must be in"):
        block_mask(np.random.default_rng(0), (4, 2), 4, aspect=0.0)
    with pytest.raises(ValueError, match="at least 2 patches: got 3 images of 1 patches"):
        patch_masks(0, 3, (1, 1), 0.5, (0.1, 0.5))
