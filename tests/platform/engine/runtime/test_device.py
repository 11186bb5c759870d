"""The device module, as far as it can be tested on a CPU."""

import numpy as np
import pytest
import torch

from platform.engine.runtime import device as devices


@pytest.mark.parametrize(("choice", "expected"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_precision_on_a_cpu(choice, expected):
    assert devices.precision(choice, torch.device("cpu")) == expected


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16: got 'fp16'"):
        devices.precision("fp16")


def test_upload_takes_arrays_and_tensors():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for given in (array, torch.from_numpy(array)):
        sent = devices.upload(given)
        assert sent.device == devices.device() and np.array_equal(sent.cpu().numpy(), array)


def test_on_a_cpu_nothing_is_fetched_before_it_is_asked_for():
    fetched = []

    def batches():
        for number in range(3):
            fetched.append(number)
            yield number

    prepared = devices.Ahead(batches(), lambda number: [torch.full((2,), float(number))])
    seen = []
    for number, (made,) in prepared:
        prepared.prepare()
        assert fetched == list(range(number + 1)) or devices.device().type == "cuda"
        seen.append((number, made.tolist()))
    assert seen == [(number, [number, number]) for number in range(3)]
