"""The pre-training loop that every worker runs: place, learner, steps, checkpoints, and the backbone at the end."""

from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from platform.engine.data.shards import read_manifest
from platform.engine.pretrain.learner import Learner
from platform.engine.pretrain.log import StepLog
from platform.engine.pretrain.place import Place, find_place
from platform.engine.pretrain.saver import Saver
from platform.engine.runs.metrics import Tracker
from platform.engine.runs.run_folder import Run
from platform.engine.runtime.device import Ahead, upload
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import stream_seeds
from platform.engine.stream.silence import telling_silence
from platform.engine.stream.stream import stream
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.step_clock import StepClock
from platform.engine.train.worker import heed, notices, report_line
from reidssl.augment.multicrop import MultiCrop
from reidssl.models.weights import model_bytes, weights_hash

OpenStream = Callable[..., Iterator[dict[str, Any]]]
NO_IMAGES = "no images for {seconds:g} s: {uri} answers slowly, or other work holds the CPUs of Ray that reading needs"


def train(config: PretrainConfig, open_stream: OpenStream = stream) -> None:
    """The training loop, run by every worker.

    open_stream: function with the signature of `stream` (platform/engine/stream/stream.py) that yields the micro-batches of this
    worker.
    """
    run = Run(open_storage(config.output, config.storage), "pretrain")
    store = CheckpointStore(
        run.location / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every_steps * config.stream.global_batch
    )
    place, resume_point = find_place(config, store)
    clock = StepClock()
    batches = load(config, place, open_stream, clock)  # reading starts now and overlaps with building the model
    learner = Learner(config, place, resume_point)
    del resume_point  # frees memory: on rank 0 it holds the whole training state
    log = StepLog(learner, run, clock)
    saver = Saver(learner, store, log.tracker)
    notice = notices()

    while not place.is_complete:
        step = learner.begin_step()
        for _ in range(place.own_micro_batches):
            batch = next(batches)
            with clock.measure("compute"):
                step.learn(*batch, batches.prepare)
            batches.prepare()
        with clock.measure("exchange"):  # waits for the slowest worker, and on a GPU for the device
            result = step.end(notice.seen())
        told = notice.decide(result.notices)
        log.write(result, saver.writer)
        if saver.is_due() or told:
            with clock.measure("saving"):
                notice.checkpoint_took(saver.save(wait=bool(told)))
        if told and not place.is_complete and heed(told, notice, f"step {place.step}"):
            return
    publish(learner, run, log.tracker)
    notice.close()
    dist.barrier()


def load(config: PretrainConfig, place: Place, open_stream: OpenStream, clock: StepClock) -> Ahead[dict[str, Any]]:
    """Iterator over (micro-batch, crops on the device) of this worker, from the current position to the end of the run.

    clock: measures the wait for input and the making of crops.
    """
    crop = MultiCrop(config.augment)
    batches: Iterator[dict[str, Any]] = iter(())
    if not place.is_complete:
        batches = open_stream(
            place.plan,
            config.stream,
            open_storage(config.data.uri, config.storage),
            config.decode_size,
            place.seen,
            place.total,
            config.scaling.decode_resource,
        )
    if place.rank == 0:
        batches = telling_silence(batches, lambda seconds: report_line(NO_IMAGES.format(seconds=seconds, uri=config.data.uri)))

    def crops_of(batch: dict[str, Any]) -> list[Tensor]:
        with clock.measure("crops"):
            return crop(upload(batch["image"]), stream_seeds(config.seed, batch["epoch"], batch["key"]), batch["shape"])

    return Ahead(clock.waiting("input_wait", batches), crops_of)


def publish(learner: Learner, run: Run, tracker: Tracker | None) -> None:
    """Publish the backbone, the log and the summary, which marks the run complete. Only rank 0, which has a tracker, does it."""
    if tracker is None:
        return
    config, place, corrupt, retry_s = learner.config, learner.place, learner.corrupt, learner.config.storage.retry_timeout_s
    exported = learner.objective.export_backbone()
    made_from = {"data": config.data.uri, "selection": config.data.selection}
    checksum = read_manifest(open_storage(config.data.uri, config.storage)).checksum
    backbone = model_bytes(
        exported,
        {
            "kind": "backbone",
            "mean": config.augment.mean,
            "std": config.augment.std,
            "samples_seen": place.seen,
            **made_from,
            "manifest": checksum,
        },
    )
    patiently(lambda: (run.location / "backbone.safetensors").write_bytes(backbone), retry_s, report_line)
    patiently(tracker.publish, retry_s, report_line)
    tracker.close()
    speeds = sorted(row["images_per_second"] for row in tracker.rows)
    last = tracker.rows[-1] if tracker.rows else {}
    if not last:
        report_line(f"note: {tracker.file.uri} holds no row of this run, so its summary has no loss, speed or probe")
    summary = {
        "samples_seen": place.seen,
        "steps": place.step,
        "final_loss": last.get("loss"),
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "corrupt_samples": corrupt.total,
        "corrupt": corrupt.reasons,
        "weights": weights_hash(exported)[:12],
        **made_from,
        "data_checksum": checksum,
        "probe": {name: value for name, value in last.items() if name.startswith("probe")},
    }
    patiently(lambda: run.finish(summary), retry_s, report_line)
