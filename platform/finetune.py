"""Fine-tune a model on a target set and evaluate it: supervised, UDA (labels of another set) or USL (no labels).

  python -m platform.finetune setting=supervised checkpoint=runs/first target_set=runs/demo/data/target output=runs/supervised
  python -m platform.finetune setting=usl checkpoint=runs/first target_set=s3://bucket/market output=s3://bucket/runs/usl
  python -m platform.finetune setting=uda checkpoint=runs/first source_set=runs/msmt target_set=runs/market output=runs/uda

checkpoint: a pre-training run, or a checkpoint file written by this platform or released by others; empty: random weights.
load.* supplies what the file does not say, e.g. load.heads=12; the program prints what it assumes. model.num_cameras=6 learns an
embedding for each of the 6 cameras of the training set (TransReID's SIE); query and gallery must come from these cameras.
supervised.jigsaw.parts=4 adds TransReID's local features (JPM).
UDA is supervised training on the train split of the source, then unsupervised training on that of the target. Running the same
command again continues after the last finished epoch, or inside it with save_every_steps. After Ctrl-C, SIGTERM, or a notice
that a node will go, it continues after the last step. A batch is shared by all workers, and the results do not depend on their
number. Results: model.safetensors (written before the evaluation), metrics.jsonl, rankings.json, summary.json.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("finetune")

from typing import Any

import torch.distributed as dist

from platform.engine.clustering.sharded_neighbors import check_room
from platform.engine.data.set_aside import LISTED, SAID
from platform.engine.errors import UserError
from platform.engine.finetune.camera_plan import plan_cameras
from platform.engine.finetune.extraction import extract
from platform.engine.finetune.inputs import check_inputs, shared_micro_batches, with_micro_batches
from platform.engine.finetune.loop import PhaseTrainer
from platform.engine.finetune.phase import Phase
from platform.engine.finetune.results import best_row, finish, open_tracker, publish_model
from platform.engine.finetune.start import image_set, initial_model, load_init, model_for, phases_of, record_of
from platform.engine.finetune.start_features import StartFeatures
from platform.engine.inference.evaluation import evaluate_features, retrieval_metrics
from platform.engine.inference.models import BEST
from platform.engine.runs.complete import say_complete
from platform.engine.runs.run_folder import SUMMARY, Run, open_run
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.launch import launch
from platform.engine.train.worker import notices, report_line, restarted_at

LOOP = "platform.finetune:finetune"


def main(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune and evaluate. Returns the summary; a complete run is not repeated. Raises UserError."""
    location = open_storage(config.output, config.storage)
    config = with_micro_batches(config, location)
    if not (location / SUMMARY).exists():  # check first: a mistyped path must not become the configuration of the folder
        config.scaling.sizes(shared_micro_batches(config))
        inputs = check_inputs(config)
    run = open_run("finetune", config.output, config, config.storage)
    if run.summary:
        say_complete(run, open_storage(config.target_set, config.storage))
        return run.summary
    run.pin(inputs)
    connect(config.runtime, "finetune", run.location.uri)
    if config.setting != "supervised":
        check_room(config.unsupervised.neighbors, config.scaling)
    origin = config.checkpoint or "random weights"
    say(f"finetune: {config.setting} from {origin} on {config.target_set}; output {run.location.uri}")
    launch(
        LOOP,
        config,
        storage=run.location,
        scaling=config.scaling,
        micro_batches_per_step=shared_micro_batches(config),
        heeds_notices=True,
    )
    summary = run.summary
    if summary is None:
        raise UserError("fine-tuning ended without a summary; run the same command again to continue")
    start = summary.get("start")
    before = f"  (before fine-tuning: {start['mAP']:.1%}, {start['rank1']:.1%})" if start else ""
    say(
        f"finetune: {config.setting}  mAP {summary['mAP']:.1%}  Rank-1 {summary['rank1']:.1%}{before}"
        + "".join(f"  warning: {warning}" for warning in summary["warnings"])
    )
    return summary


def finetune(config: FinetuneConfig) -> None:
    """The whole run: train all phases, publish the model, evaluate. Collective: every worker calls it."""
    run = Run(open_storage(config.output, config.storage), "finetune")
    store = CheckpointStore(run.location / "checkpoints", keep=1)
    first = dist.get_rank() == 0
    found = patiently(store.newest, config.storage.retry_timeout_s, report_line if first else None)
    if first:
        restarted_at(found.payload["images_seen"] if found else 0)
        if found:
            inside = found.payload.get("inside")
            report_line(
                f"continuing after phase {found.payload['phase'] + 1}, epoch {found.payload['epoch']}"
                + (f" and {inside['step']} of {len(inside['batches'])} steps" if inside else "")
            )
    init = load_init(config)
    plan = plan_cameras(config, init)
    model = initial_model(config, init, plan)
    phases = phases_of(config, model.backbone, plan)
    tracker = open_tracker(run, config, found) if first else None
    query, gallery = (image_set(config, config.target_set, split, model.backbone, plan) for split in ("query", "gallery"))
    corrupt = [problem for images in (*[phase.images for phase in phases], query, gallery) for problem in images.problems]
    for problem in corrupt[:SAID] if tracker else []:
        report_line(f"set aside: {problem}")

    shared = StartFeatures(open_storage(config.start_features, config.storage)) if config.start_features else None

    def judge(phase: Phase, options: EvaluateConfig, features: Any = extract) -> dict[str, Any]:
        of_query, of_gallery = (
            features(model, images, phase.config.neck, config.augment, config.engine, options.flip) for images in (query, gallery)
        )
        return evaluate_features(query, gallery, of_query, of_gallery, options)

    record = record_of(init, plan)
    trainer = PhaseTrainer(
        setting=config.setting,
        seed=config.seed,
        augment=config.augment,
        engine=config.engine,
        evaluate_every=config.evaluate_every,
        store=store,
        tracker=tracker,
        notice=notices(),
        judge=lambda phase: judge(phase, config.evaluate.fast),
        best_metric=config.keep_best,
        best=best_row(config, tracker),
        publish_best=lambda phase: publish_model(run, config, model, phase, record, BEST),
        save_every_steps=config.save_every_steps,
        images_seen=found.payload["images_seen"] if found else 0,
        start_features=shared,
    )
    if config.evaluate_start and not found:
        trainer.log_start(retrieval_metrics(judge(phases[0], config.evaluate.fast, shared.extract if shared else extract)))
    for number, phase in enumerate(phases):
        model = model_for(phase, model)
        if (not found or number >= found.payload["phase"]) and trainer.train(model, phase, number, found):
            return  # on a notice, after a checkpoint
    trainer.notice.close()
    if tracker:
        publish_model(run, config, model, phases[-1], record)  # first: an error in the evaluation must not lose the model
    result = judge(phases[-1], config.evaluate) | {"corrupt_images": len(corrupt), "corrupt": corrupt[:LISTED]}
    if tracker:
        best = trainer.best
        if config.keep_best and (best is None or result[config.keep_best] >= best[config.keep_best]):
            best = {"phase": len(phases) - 1, "epoch": phases[-1].config.epochs, **retrieval_metrics(result)}
            publish_model(run, config, model, phases[-1], record, BEST)
        finish(run, config, model, phases[-1], tracker, result | {"best": best}, trainer.images_seen, record)
    dist.barrier()
