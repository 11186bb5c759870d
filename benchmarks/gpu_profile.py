"""Which kernels take the time of a training step: the bare loop of `benchmarks.gpu` under torch's profiler.

  python -m benchmarks.gpu_profile                                   ViT-S with the ICS stem, micro-batch 256
  python -m benchmarks.gpu_profile model.stem=patch stream.micro_batch=128
  python -m benchmarks.gpu_profile --tiny                            a toy model, on any machine; its figures mean nothing

Prints the time of a step, then its kernels, those of the longest total time first. On a CPU these are operators.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu import FULL, TINY
from benchmarks.gpu_sides import config_of, training_step, wait

STEPS = 3


def time_of(step: Callable[[], None], count: int) -> float:
    """Seconds of a step, after all earlier work is done."""
    wait()
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - started) / count


def kernels(step: Callable[[], None]) -> list[tuple[str, float, float]]:
    """(name, milliseconds in a step, launches in a step) of the kernels, or of the operators on a CPU; longest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        time_of(step, STEPS)
    return of_a_step(found.key_averages(), on_gpu)


def of_a_step(events: Iterable[Any], on_gpu: bool) -> list[tuple[str, float, float]]:
    """The rows of `kernels` from the profiler's averages of STEPS steps.

    On a GPU only what ran on it counts. The profiler also lists the calls that start kernels, and named ranges of the program.
    """
    from torch.autograd import DeviceType

    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    times = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / STEPS, event.count / STEPS)
        for event in events
        if event.device_type == kind and not event.is_user_annotation
    ]
    return sorted(times, key=lambda each: -each[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy model, on a CPU too")
    parser.add_argument("--rows", type=int, default=40, help="kernels to print (default 40)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of platform.pretrain")
    arguments = parser.parse_args()
    sizes = TINY if arguments.tiny else FULL
    config = config_of([*sizes.overrides, f"stream.micro_batch={sizes.batches[-1]}", *arguments.overrides])
    step, _, _ = training_step(config)
    first = time_of(step, 1)
    time_of(step, 2)
    seconds, batch = time_of(step, 5), config.stream.micro_batch
    print(f"first step {first:.1f} s, then {seconds * 1000:.1f} ms a step of {batch} images: {batch / seconds:,.0f} images/s\n")
    found = kernels(step)
    whole = sum(each[1] for each in found)
    print(f"{sum(each[2] for each in found):,.0f} launches a step, {whole:.1f} ms in all\n")
    for name, milliseconds, count in found[: arguments.rows]:
        print(f"{milliseconds:8.3f} ms {milliseconds / whole:6.1%} {count:7.1f} x  {name[:100]}")


if __name__ == "__main__":
    main()
