"""The crops of accelerators, on a CPU: the number of their operators does not depend on the random draws."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reidssl.augment.batched import _crops_of_one_size, table_of
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.seeding import sample_seeds

SMALL = {"global_size": (32, 16), "local_size": (16, 8)}


class Count(TorchDispatchMode):
    """Counts operators that launch a kernel on an accelerator. Views and allocations are not counted."""

    FREE = ("aten.empty", "aten.detach", "aten.lift", "aten._unsafe_view")

    def __init__(self):
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launches += not (func.is_view or str(func).startswith(self.FREE))
        return func(*args, **(kwargs or {}))


def launches_for(config: MultiCropConfig, count: int) -> int:
    images = torch.randint(0, 256, (count, 3, 40, 24), dtype=torch.uint8)
    crop, seeds = MultiCrop(config, use_compiled=False), sample_seeds(0, count, [str(i) for i in range(count)])
    with Count() as counted:
        crop(images, seeds)
    return counted.launches


def test_the_number_of_operators_is_bounded_and_the_same_for_every_batch():
    """The number is the same for 1 or 64 images and for any draws. An earlier version took 3,788 operators for 64 images."""
    counts = {launches_for(MultiCropConfig(**SMALL, num_local=num_local), count) for count in (1, 5, 64) for num_local in (1, 8)}
    assert len(counts) == 1
    assert counts.pop() < 720  # single operators for both sizes; the test below counts the kernels after fusion
    without_blur = dict.fromkeys(("blur_global1", "blur_global2", "blur_local"), 0.0)
    assert launches_for(MultiCropConfig(**SMALL, **without_blur), 5) < launches_for(MultiCropConfig(**SMALL), 5)


@pytest.mark.slow
def test_compiled_they_are_a_few_dozen_kernels_and_the_same_crops():
    """Inductor's own count of fused loops and matrix products for the crops of one size, on a CPU."""
    from torch._inductor import metrics

    config = MultiCropConfig(**SMALL)
    images = torch.randint(0, 256, (6, 3, 40, 24), dtype=torch.uint8)
    draws = MultiCrop(config)._draw(sample_seeds(0, 0, list("abcdef")), 40, 24, [0, 1])
    source = images.permute(0, 2, 1, 3).float().contiguous()
    arguments = (source, torch.from_numpy(table_of(draws, 2)), config.global_size, 2, 2.0, tuple(config.mean), tuple(config.std))
    metrics.reset()
    made = torch.compile(_crops_of_one_size, dynamic=False)(*arguments)
    torch.testing.assert_close(made, _crops_of_one_size(*arguments), rtol=0, atol=5e-4)
    assert 4 <= metrics.generated_kernel_count <= 30
