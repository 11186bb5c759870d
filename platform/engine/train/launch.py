"""Ray Train around a training loop: launch it, print its lines and stop it cleanly.

A loop is a plain function of its configuration that runs on every worker. It finds its own newest checkpoint. A crash, a
preemption, a resize and running the same command again are therefore handled alike: start, restore, continue.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

from platform.engine.config.compose import flat, to_plain
from platform.engine.errors import StoppedError, UserError
from platform.engine.runtime.growth import may_grow
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.runtime.ray_session import is_own, threads_of_worker
from platform.engine.runtime.run_name import run_name
from platform.engine.runtime.terminal import relayed_lines
from platform.engine.secrets import hidden, hide, remembered
from platform.engine.storage.location import Location
from platform.engine.train.prepared import prepare_reader, prepare_workers
from platform.engine.train.scaling import ScalingConfig, reading_text
from platform.engine.train.stopping import stop_on_signals

Settings = TypeVar("Settings")
METRICS_S = 11.0  # Ray's processes report their metrics every 10 s
# Longest wait for another worker. The others wait while one clusters or evaluates, with millions of images for longer than Ray's
# half hour. A worker that died is noticed by Ray at once, without this.
LONGEST_WAIT_S = 6 * 3600


def launch(
    loop: Callable[[Settings], None] | str,
    config: Settings,
    *,
    storage: Location,
    scaling: ScalingConfig,
    micro_batches_per_step: int = 1,
    heeds_notices: bool = False,
    reads_shards: bool = False,
) -> None:
    """Run `loop(config)` on Ray Train workers until it ends, and print its lines on this terminal.

    Args:
        loop: the function, or its name as "module:function". With a name, this process need not import what the loop imports.
        storage: run folder; the files of Ray Train are in its folder ray_train. The Train run has the name of this process's run.
        scaling: the workers and their resources.
        micro_batches_per_step: the number of workers of an elastic group always divides it.
        heeds_notices: whether the loop checks `notices()` at every step, so that resizing, SIGTERM and Ctrl-C lose no step.
        reads_shards: whether the loop reads through Ray Data, in processes that then start while the workers do.

    Raises UserError with the message of the loop if it fails, and StoppedError after SIGTERM or Ctrl-C.
    """
    import ray

    reading = scaling.reading_cpus if reads_shards else 0.0
    _check_resources(scaling, reading)
    tell_idle_gpus({"scaling.gpus_per_worker": scaling.gpus_per_worker})
    resources = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    allowed = scaling.sizes(micro_batches_per_step)
    if not scaling.gpus_per_worker:  # Train's own group assigns the GPUs
        prepare_workers(_fitting(allowed, scaling, reading), loop.partition(":")[0] if isinstance(loop, str) else "")
    with relayed_lines() as board, stop_on_signals(board if heeds_notices else None) as stopping:
        # Imported here, while the workers start: these modules import torch.
        from ray import cloudpickle
        from ray.train import FailureConfig, LoggingConfig, RunConfig
        from ray.train import ScalingConfig as RayScalingConfig

        from platform.engine.runtime import device as devices
        from platform.engine.train.trainer import ElasticTrainer, KeepingTorchConfig
        from platform.engine.train.worker import GuardedLoop

        # The types are ignored because Ray annotates version 1 of Train and runs version 2.
        trainer = ElasticTrainer(
            # Pickled to bytes, because Train's controller unpickles the loop and must not need its imports.
            GuardedLoop(
                work=cloudpickle.dumps((loop, config, remembered())),
                board=board,
                threads=scaling.threads or threads_of_worker(scaling.workers),
                name=run_name(),
                run=storage.uri,
                last_report_s=METRICS_S if may_grow() else 0,
            ),
            allowed=allowed,
            board=board,
            heeds_notices=heeds_notices,
            reading_cpus=reading,
            train_loop_config=shown_settings(config),
            torch_config=KeepingTorchConfig(backend=devices.backend(scaling.gpus_per_worker), timeout_s=LONGEST_WAIT_S),
            scaling_config=RayScalingConfig(
                num_workers=scaling.num_workers,  # type: ignore[arg-type]
                use_gpu=scaling.gpus_per_worker > 0,
                elastic_resize_monitor_interval_s=scaling.resize_check_s,  # type: ignore[call-arg]
                resources_per_worker=resources,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=run_name() or "train",
                storage_path=(storage / "ray_train").path,
                storage_filesystem=storage.filesystem,
                failure_config=FailureConfig(
                    max_failures=scaling.max_failures,  # type: ignore[call-arg]
                    max_preemption_failures=scaling.max_preemptions,
                ),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        if reads_shards:
            prepare_reader()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise UserError(ray.get(board.fatal.remote()) or _unexpected(error)) from None
        fatal = ray.get(board.fatal.remote())
        if fatal:
            raise UserError(fatal)
        if stopping.number:
            raise StoppedError("stopped after a checkpoint; run the same command again to continue", stopping.number)


def shown_settings(config: Any) -> dict[str, Any]:
    """The settings for the Train page of the dashboard: {"model.width": 384, ...}, without secrets.

    Flat, because the page cuts off what is nested deeper than three levels.
    """
    values = to_plain(config) if is_dataclass(config) and not isinstance(config, type) else config
    return flat(hidden(values)) if isinstance(values, Mapping) else {}


def _unexpected(error: BaseException) -> str:
    """Message with the last line of an unexpected error. Prints the whole trace to stderr."""
    failures = getattr(error, "worker_failures", {})
    text = "\n".join(str(failure) for failure in failures.values()) or "".join(traceback.format_exception(error))
    print(hide(text), file=sys.stderr)
    last = [line for line in text.strip().splitlines() if line.strip()][-1]
    return f"training failed on a worker: {last.strip()}"


def _fitting(allowed: list[int], scaling: ScalingConfig, reading: float) -> int:
    """The largest allowed number of workers for which this Ray has the CPUs, beside those for reading."""
    import ray

    cpus = ray.cluster_resources().get("CPU", 0) - reading
    return max([size for size in allowed if size * scaling.cpus_per_worker <= cpus], default=allowed[0])


def _check_resources(scaling: ScalingConfig, reading: float) -> None:
    """Raise UserError if the cluster cannot hold the smallest worker group and `reading` CPUs, unless it can grow."""
    import ray

    total = ray.cluster_resources()
    fewest = scaling.fewest
    needed = {"CPU": fewest * scaling.cpus_per_worker, "GPU": fewest * scaling.gpus_per_worker}
    growing = may_grow() and not is_own()  # a Ray that this program started has one node, whatever the environment says
    for kind, amount in needed.items():
        left = reading if kind == "CPU" else 0
        if amount + left > total.get(kind, 0) and not growing:
            raise UserError(
                f"{fewest} workers need {amount:g} {kind}{reading_text(left)}, this Ray has {total.get(kind, 0):g}: lower "
                "scaling.workers or scaling.cpus_per_worker/gpus_per_worker, start Ray with more (runtime.num_cpus), or connect "
                "to a larger cluster"
            )
    if scaling.decode_resource and not total.get(scaling.decode_resource) and not growing:
        raise UserError(
            f"no node offers the resource '{scaling.decode_resource}' of scaling.decode_resource: start decode nodes "
            f"with `ray start --resources='{{\"{scaling.decode_resource}\": 1}}'`, or leave it empty"
        )
