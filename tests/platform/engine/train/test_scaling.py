"""Numbers of workers: those that share a step evenly, and refusals before anything starts."""

import pytest
import ray

from platform.engine.errors import UserError
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.train.scaling import ScalingConfig, allowed_sizes, check_size, require_room


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers must be at least 1: got 0"),
        ({"workers": 2, "min_workers": 3}, r"min_workers must be between 0 and workers \(2\): got 3"),
        ({"max_failures": -2}, r"max_failures must be -1 \(no limit\) or more: got -2"),
        ({"gpus_per_worker": 2}, "gpus_per_worker must be 0, 1, or a share between them: got 2"),
        ({"gpus_per_worker": 0.5, "workers": 2}, r"gpus_per_worker must be 0 or 1 with more than one worker: got 0\.5"),
        ({"resize_check_s": 0.0}, r"resize_check_s must be positive: got 0\.0"),
    ],
)
def test_impossible_scaling(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ScalingConfig(**values)


def test_number_of_workers():
    assert ScalingConfig(workers=4).num_workers == 4
    assert ScalingConfig(workers=4, min_workers=2).num_workers == (2, 4)
    assert ScalingConfig(workers=4, min_workers=4).num_workers == 4


def test_sizes_that_share_a_step_evenly():
    assert allowed_sizes(6) == [1, 2, 3, 6]
    assert ScalingConfig(workers=8, min_workers=2).sizes(8) == [2, 4, 8]
    assert ScalingConfig(workers=6, min_workers=1).sizes(12) == [1, 2, 3, 4, 6]
    assert ScalingConfig(workers=4).sizes(8) == [4]


def test_bounds_that_do_not_are_refused_with_the_list():
    for scaling in (ScalingConfig(workers=5), ScalingConfig(workers=6, min_workers=5)):
        with pytest.raises(UserError, match=r"5 workers cannot share 6 micro-batches .*\[1, 2, 3, 6\]"):
            scaling.sizes(6)
    check_size(3, 6)
    with pytest.raises(UserError, match=r"12 workers cannot share 6 "):
        check_size(12, 6)


@pytest.mark.parametrize(
    ("gpus", "together", "advice"),
    [
        (0, 2, r"set pretrain\.scaling\.gpus_per_worker and finetune\.scaling\.gpus_per_worker to 0, or connect"),
        (1, 2, r"set concurrent=1, or pretrain\.scaling\.gpus_per_worker and .* to 0\.5, which lets them share a GPU"),
        (2, 3, r"set concurrent=2, or .* to 0\.5, which"),
        (2, 6, r"set concurrent=2, or .* to 0\.33, which"),
    ],
)
def test_too_few_gpus_for_all_stages(monkeypatch, gpus, together, advice):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": float(gpus)})
    groups, settings = [ScalingConfig(gpus_per_worker=1)] * 2, ["pretrain.scaling", "finetune.scaling"]
    with pytest.raises(UserError, match=f"{together} stages at a time need {together} GPU, this Ray has {gpus}: {advice}"):
        require_room(f"{together} stages", groups, together, settings)
    if gpus:
        require_room("1 stages", groups, gpus, settings)


def test_stages_leave_a_cpu_for_reading(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    groups, settings = [ScalingConfig(workers=2), ScalingConfig()], ["pretrain.scaling", "finetune.scaling"]
    with pytest.raises(UserError, match=r"2 stages at a time need 4 CPU and 1 to read, this Ray has 4: lower concurrent, or"):
        require_room("2 stages", groups, 2, settings, reading=groups[0].reading_cpus)
    require_room("2 stages", groups, 2, settings, reading=ScalingConfig(decode_resource="decode").reading_cpus)


def test_a_local_ray_gets_a_cpu_for_reading():
    cpus = RuntimeConfig().local_cpus
    assert cpus >= 4
    assert RuntimeConfig().beside(cpus - 1, 1).local_cpus == cpus
    assert RuntimeConfig().beside(cpus, 1).local_cpus == cpus + 1
    assert RuntimeConfig().beside(cpus + 1, 1).local_cpus == cpus  # more workers than cores are refused
    assert RuntimeConfig(num_cpus=2).beside(2, 1).local_cpus == 2  # as given


def test_too_few_gpus_for_runs_of_several_workers(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    with pytest.raises(UserError, match=r"2 trials at a time need 4 GPU, this Ray has 2: lower concurrent, or a\.workers, or"):
        require_room("2 trials", [ScalingConfig(workers=2, gpus_per_worker=1)], 2, ["a"])
