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

from typing import Any

from platform.engine.errors import UserError
from platform.engine.pretrain.plan import check_probe, plan_of
from platform.engine.runs.complete import say_complete
from platform.engine.runs.run_folder import SUMMARY, open_run
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
from platform.engine.train.launch import launch
from platform.engine.train.scaling import allowed_sizes

LOOP = "platform.engine.pretrain.loop:train"


def main(config: PretrainConfig) -> dict[str, Any]:
    """Train to the end. Returns the summary; a complete run is not repeated. Raises UserError, StoppedError after a signal."""
    location = open_storage(config.output, config.storage)
    complete = (location / SUMMARY).exists()
    if not complete:  # check first: a mistyped path or number must not become the configuration of the output folder
        plan, total = plan_of(config)
        check_probe(config.probe, config.storage)
        if config.checkpoint.resume_from:
            from platform.engine.train.start import check_start  # it imports torch, which takes seconds

            check_start(location, config.checkpoint, plan, total, config.stream.global_batch)
        sizes = config.scaling.sizes(config.stream.micro_batches_per_step)
    run = open_run("pretrain", config.output, config, config.storage)
    if complete and run.summary:
        say_complete(run, open_storage(config.data.uri, config.storage))
        return run.summary
    scaling = config.scaling
    runtime = config.runtime.beside(scaling.workers * scaling.cpus_per_worker, scaling.reading_cpus)
    connect(runtime, "pretrain", run.location.uri, meanwhile="torch")
    say(
        f"pretrain: {plan.samples_per_epoch:,} images, {total:,} to see in {total // config.stream.global_batch:,} "
        f"steps of {config.stream.global_batch}; {workers_text(sizes, config.stream.micro_batches_per_step)}; "
        f"output {run.location.uri}"
    )
    launch(
        LOOP,
        config,
        storage=run.location,
        scaling=scaling,
        micro_batches_per_step=config.stream.micro_batches_per_step,
        heeds_notices=True,
        reads_shards=True,
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
