"""Sweep fine-tuning settings with Ray Tune. Every trial is a fine-tuning run of its own, with its own Ray Train workers.

  python -m platform.tune finetune.checkpoint=runs/first finetune.target_set=runs/market output=runs/sweep
  python -m platform.tune '+space.unsupervised.cluster={eps:[0.4,0.5],k1:[20,30]}' output=runs/sweep ...
  python -m platform.tune sweep=eps_k1 space.seed=[0,1,2] output=runs/sweep ...         (means over three seeds)
  python -m platform.tune 'space.supervised.learning_rate={log_uniform:[1e-4,1e-2]}' search=optuna samples=30 \\
      finetune.setting=supervised finetune.evaluate_every=10 scheduler.name=asha output=runs/sweep ...
  python -m platform.tune 'space.unsupervised.learning_rate={log_uniform:[1e-5,1e-3]}' samples=8 concurrent=8 \\
      finetune.evaluate_every=5 scheduler.name=pbt output=runs/population ...            (population based training)

space: settings of platform.finetune, each with a list of values or a distribution to draw from. The default sweeps eps of the USL
setting; sweep=... chooses a comparison of configs/sweep. All points of a grid are composed and checked before the first trial
starts, and every point is stored in points.json before it runs. In a population (pbt) the worst trials are replaced by copies of
the best with other settings: further points, whose runs begin with the checkpoint and the log of the copied one.
Results: trials.json and trials.parquet record for every trial its settings and whether it is finished, stopped early by the
scheduler, failed (with the reason) or not finished. best.safetensors has the weights of the best trial. A failed trial does not
stop the others; the program then exits with status 10 + the number of trials that are not finished (99 at most).
Running the same command again reads the finished trials, repeats the failed ones and continues the others from their last epoch.
summary.json is written when all trials are finished or stopped early.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("tune")

import json
from typing import Any

from platform.engine.clustering.sharded_neighbors import check_room
from platform.engine.errors import FailedTrialsError, UserError
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, Run, open_run
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.tune_settings import TuneConfig
from platform.engine.storage.location import open_storage
from platform.engine.sweep.results import TRIALS, best_of, export_best, table, write_results
from platform.engine.sweep.space import Point, text_of
from platform.engine.sweep.trials import PointBook, is_done, planned, row_of, start_features, trial_config
from platform.engine.train.scaling import require_room
from platform.finetune import check_inputs, shared_micro_batches, with_micro_batches
from platform.finetune import main as run_finetune


def main(config: TuneConfig) -> dict[str, Any]:
    """Run the sweep. Returns the summary with "best", "trials" and "metric".

    Raises UserError for a space or inputs that cannot be used, and FailedTrialsError at the end if a trial is not finished.
    """
    plan = planned(config)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():
        check_trials(config, plan)  # check first: a mistyped path must not become the configuration of the output folder
    run = open_run("tune", config.output, config, config.storage, volatile=(*VOLATILE, "concurrent", "verbose"))
    if run.summary:
        say(f"tune: {run.location.uri} is complete already")
    else:
        run_all(config, run, plan)
    summary = run.summary or {}
    print(table(summary["trials"], config.metric))
    if summary["best"]:
        say(f"tune: best: {text_of(summary['best']['point'])}; weights in {summary['exported']}")
    return summary


def run_all(config: TuneConfig, run: Run, plan: list[Point]) -> None:
    """Run the trials that are left, and conclude the sweep."""
    book = PointBook(run.location)
    if config.search == "grid" and not book.points:
        book.add(plan)
    number = config.samples if config.search == "optuna" else len(book.points)
    left = [point for point in book.points if not is_done(row_of(config, point))]
    finished = len(book.points) - len(left)
    say(f"tune: {number} trials, {config.concurrent} at a time; output {run.location.uri}")
    if finished:
        say(f"tune: finished already: {finished}; left: {number - finished}")
    reasons = {}
    if number > finished:
        from platform.engine.sweep.search import run_trials  # imports Ray Tune, which takes seconds

        connect(config.runtime, "tune", run.location.uri)
        tell_idle_gpus({"finetune.scaling.gpus_per_worker": config.finetune.scaling.gpus_per_worker})
        check_concurrency(config, plan if config.search == "optuna" else left, number - finished)
        reasons = run_trials(config, book, left, run.location, run_finetune)
        book = PointBook(run.location)  # a population has added points
        number = max(number, len(book.points))
    if len(book.points) < number:
        say(f"tune: the search ended after {len(book.points)} of {number} trials: it found no further point to try")
    conclude(config, run, [row_of(config, point, reasons.get(json.dumps(point), "")) for point in book.points])


def conclude(config: TuneConfig, run: Run, rows: list[dict[str, Any]]) -> None:
    """Write the results. If all trials are done, mark the sweep complete; otherwise raise FailedTrialsError."""
    write_results(run.location, rows)
    best = best_of(rows, config.metric)
    exported = export_best(run.location, best).uri if best else ""
    others = [row for row in rows if not is_done(row)]
    if not others:
        start_features(config).delete()
        run.finish({"best": best, "exported": exported, "trials": rows, "metric": config.metric})
        return
    if best:
        print(table(rows, config.metric))
    shown = "\n  ".join(f"{row['state']}: {text_of(row['point'])}: {row['reason']}" for row in others)
    raise FailedTrialsError(
        f"{len(others)} of {len(rows)} trials are not finished, {len(rows) - len(others)} are; see "
        f"{(run.location / TRIALS).uri}. The same command again repeats only these:\n  {shown}",
        len(others),
    )


def check_trials(config: TuneConfig, trials: list[Point]) -> None:
    """Check the inputs and the number of workers of all trials. Inputs that trials share are checked once. Raises UserError."""
    if config.scheduler.name == "pbt":
        from platform.engine.sweep.population import check_population

        check_population(config, len(trials))
    seen = set()
    for point in trials:
        trial = trial_config(config, point)
        inputs = (
            trial.setting,
            trial.checkpoint,
            trial.source_set,
            trial.target_set,
            tuple(trial.augment.image_size),
            str((trial.overrides, trial.load)),
            str(trial.train_sets),
            (trial.train_fraction, trial.seed) if trial.train_fraction < 1 else None,
            (trial.supervised.freeze_layers, trial.unsupervised.freeze_layers),
            str((trial.model, trial.supervised.batch, trial.supervised.jigsaw)),
            (trial.unsupervised.cluster.algorithm, trial.unsupervised.cluster.num_clusters),
        )
        try:
            cut = with_micro_batches(trial, open_storage(trial.output, trial.storage))
            trial.scaling.sizes(shared_micro_batches(cut))
            if inputs not in seen:
                check_inputs(trial)
        except UserError as error:
            raise UserError(f"space: {text_of(point)} cannot be: {error}") from None
        seen.add(inputs)


def check_concurrency(config: TuneConfig, trials: list[Point], number: int) -> None:
    """Check that the workers of all concurrent trials fit the cluster. Raises UserError if they do not.

    Args:
        trials: the points of the trials, or points that have all their values.
        number: of trials.
    """
    together = min(config.concurrent, number)
    found = [trial_config(config, point) for point in trials]
    groups = [trial.scaling for trial in found]
    require_room(f"{together} trials", groups, together, ["finetune.scaling"], once=config.search == "grid")
    for trial in found:
        if trial.setting != "supervised":
            check_room(trial.unsupervised.neighbors, trial.scaling, together)
