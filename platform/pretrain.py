"""Pre-train a vision transformer by self-supervision: shards -> Ray Data -> Ray Train -> DeepSpeed -> backbone.

  python -m platform.pretrain data.uri=runs/demo/data/pretrain output=runs/first
  python -m platform.pretrain data.uri=s3://bucket/luperson output=s3://bucket/runs/vit-s experiment=luperson_vit_small_ics
  python -m platform.pretrain data.uri=... data.selection=runs/demo/selection output=runs/half   (a selected subset)
  ray job submit --working-dir . -- python -m platform.pretrain output=s3://bucket/runs/vit-s ...

Running the same command again continues an interrupted run from its newest checkpoint and prints its position. On Ctrl-C or
SIGTERM (`ray job stop`, `kill`) the run writes a checkpoint before it stops. docs/reliability.md lists the failures that a run
survives and what each of them costs.
Results in the output folder: backbone.safetensors (the EMA teacher), metrics.jsonl, summary.json, checkpoints/.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("pretrain")

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from platform.engine.config.compose import to_plain
from platform.engine.data.shards import read_manifest
from platform.engine.errors import UserError
from platform.engine.pretrain.learner import Learner
from platform.engine.pretrain.log import StepLog
from platform.engine.pretrain.place import Place, find_place, plan_of
from platform.engine.pretrain.saver import Saver
from platform.engine.runs.metrics import Tracker
from platform.engine.runs.run_folder import SUMMARY, Run, open_run
from platform.engine.runtime.device import ahead, upload
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import stream_seeds
from platform.engine.stream.stream import stream
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.launch import launch, notices, report_line
from platform.engine.train.notices import STOP, WAIT, Notices
from platform.engine.train.scaling import allowed_sizes
from reidssl.augment.multicrop import MultiCrop
from reidssl.models.weights import model_bytes, weights_hash

OpenStream = Callable[..., Iterator[dict[str, Any]]]


def main(config: PretrainConfig) -> dict[str, Any]:
    """Train to the end. Returns the summary; a complete run is not repeated. Raises UserError, StoppedError after a signal."""
    complete = (open_storage(config.output, config.storage) / SUMMARY).exists()
    if not complete:  # check first: a mistyped path or number must not become the configuration of the output folder
        plan, total = plan_of(config)
        sizes = config.scaling.sizes(config.stream.micro_batches_per_step)
    run = open_run("pretrain", config.output, config, config.storage)
    if complete and run.summary:
        say(f"pretrain: {run.location.uri} is complete already")
        return run.summary
    connect(config.runtime)
    say(
        f"pretrain: {plan.samples_per_epoch:,} images, {total:,} to see in {total // config.stream.global_batch:,} "
        f"steps of {config.stream.global_batch}; {workers_text(sizes, config.stream.micro_batches_per_step)}; "
        f"output {run.location.uri}"
    )
    launch(
        train,
        config,
        name="ray_train",
        storage=run.location,
        scaling=config.scaling,
        micro_batches_per_step=config.stream.micro_batches_per_step,
        heeds_notices=True,
    )
    summary = run.summary
    if summary is None:
        raise UserError("training ended without a summary; run the same command again to continue")
    return summary


def workers_text(sizes: list[int], micro_batches_per_step: int) -> str:
    """The allowed numbers of workers as text: '2, 4 or 8 workers (8 micro-batches a step: 1, 2, 4, 8 workers share them evenly)'.

    sizes: numbers of workers that this run may have, ascending.
    """
    range_of = " or ".join(filter(None, [", ".join(str(size) for size in sizes[:-1]), str(sizes[-1])]))
    shared = ", ".join(str(size) for size in allowed_sizes(micro_batches_per_step))
    return (
        f"{range_of} worker{'s' if sizes[-1] > 1 else ''} ({micro_batches_per_step} micro-batches a step: {shared} "
        "workers share them evenly)"
    )


def train(config: PretrainConfig, open_stream: OpenStream = stream) -> None:
    """The training loop, run by every worker.

    open_stream: function with the signature of `stream` (platform/engine/stream/stream.py) that yields the micro-batches of this
    worker.
    """
    run = Run(open_storage(config.output, config.storage), "pretrain", to_plain(config))
    store = CheckpointStore(
        run.location / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every_steps * config.stream.global_batch
    )
    place, resume_point = find_place(config, store)
    batches = load(config, place, open_stream)  # reading starts now and overlaps with building the model
    learner = Learner(config, place, resume_point)
    del resume_point  # frees memory: on rank 0 it holds the whole training state
    log = StepLog(learner, run)
    saver = Saver(learner, store, log.tracker)
    notice = notices()

    while not place.is_complete:
        step = learner.begin_step()
        for _ in range(place.own_micro_batches):
            step.learn(*next(batches))
        result = step.end(notice.seen())
        told = notice.decide(result.notices)
        log.write(result, saver.writer)
        if saver.is_due() or told:
            notice.checkpoint_took(saver.save(wait=bool(told)))
        if told and not place.is_complete and heed(told, notice, place):
            return
    publish(learner, run, log.tracker)
    notice.close()
    dist.barrier()


def load(config: PretrainConfig, place: Place, open_stream: OpenStream) -> Iterator[tuple[dict[str, Any], Sequence[Tensor]]]:
    """Yields (micro-batch, crops on the device) of this worker, from the current position to the end of the run."""
    if place.is_complete:
        return iter(())
    crop = MultiCrop(config.augment)
    batches = open_stream(
        place.plan,
        config.stream,
        open_storage(config.data.uri, config.storage),
        config.model.image_size,
        place.seen,
        place.total,
        config.scaling.decode_resource,
    )

    def crops_of(batch: dict[str, Any]) -> list[Tensor]:
        return crop(upload(batch["image"]), stream_seeds(config.seed, batch["epoch"], batch["key"]))

    return ahead(batches, crops_of)


def heed(told: str, notice: Notices, place: Place) -> bool:
    """Act on a notice after its checkpoint. Collective. Returns whether the loop must end.

    If the workers will be restarted ("wait"), this function waits for the restart. told: "save", "wait" or "stop".
    """
    notice.carried_out()
    if place.rank == 0:
        report_line(f"checkpoint at step {place.step} on notice")
    if told == WAIT:
        dist.barrier()  # wait until rank 0 has published the checkpoint
        notice.wait()
    return told == STOP


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
    speeds, last = sorted(row["images_per_second"] for row in tracker.rows), tracker.rows[-1]
    summary = {
        "samples_seen": place.seen,
        "steps": place.step,
        "final_loss": last["loss"],
        "images_per_second": speeds[len(speeds) // 2],
        "corrupt_samples": corrupt.total,
        "corrupt": corrupt.reasons,
        "weights": weights_hash(exported)[:12],
        **made_from,
        "data_checksum": checksum,
        "probe": {name: value for name, value in last.items() if name.startswith("probe")},
    }
    patiently(lambda: run.finish(summary), retry_s, report_line)
