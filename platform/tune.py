"""Sweep fine-tuning settings with Ray Tune. Every trial is a fine-tuning run of its own, with its own Ray Train workers.

  python -m platform.tune finetune.checkpoint=runs/first finetune.target_set=runs/market output=runs/sweep
  python -m platform.tune '+space.unsupervised.cluster={eps:[0.4,0.5],k1:[20,30]}' output=runs/sweep ...

space: a grid. Its keys are settings of platform.finetune, its values are lists to try. The default sweeps eps of the USL setting.
Every combination is composed and checked before the first trial starts.
trials.json records for every trial its settings and whether it is finished, failed (with the reason) or not finished. A failed
trial does not stop the others; the program then exits with status 10 + the number of trials that are not finished (99 at most).
Running the same command again reads the finished trials, repeats the failed ones and continues the others from their last epoch.
summary.json is written when all trials are finished.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("tune")

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from platform.engine.config.compose import to_dataclass, to_plain
from platform.engine.errors import ConfigError, FailedTrialsError, UserError, user_error_of
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, Run, open_run
from platform.engine.runtime.growth import autoscales
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import forward_lines, relayed_lines, say
from platform.engine.schemas.tune_settings import METRICS, TuneConfig
from platform.engine.secrets import hidden, hide, remembered, take_over
from platform.engine.storage.location import Location, open_storage
from platform.engine.sweep.space import Point, name_of, points, text_of, with_point
from platform.finetune import FinetuneConfig, check_inputs, shared_micro_batches, with_micro_batches
from platform.finetune import main as run_finetune

DEFAULT_SPACE = {"unsupervised": {"cluster": {"eps": [0.4, 0.5, 0.6, 0.7]}}}
FINISHED, FAILED, UNFINISHED = "finished", "failed", "not finished"
TRIALS = "trials.json"
RESERVED = {
    "output": "every trial has a folder of its own below output",
    "storage": "it is that of the sweep, storage",
    "runtime": "all trials run on the Ray of the sweep, runtime",
}
TRIAL_CPUS = 0.01  # CPUs of the function that starts the workers of a trial and waits for them


def main(config: TuneConfig) -> dict[str, Any]:
    """Run the grid. Returns the summary with "best", "trials" and "metric".

    Raises UserError for a grid or inputs that cannot be used, and FailedTrialsError at the end if a trial is not finished.
    """
    trials = grid(config)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():
        check_trials(config, trials)  # check first: a mistyped path must not become the configuration of the output folder
    run = open_run("tune", config.output, config, config.storage, volatile=(*VOLATILE, "concurrent"))
    if run.summary:
        say(f"tune: {run.location.uri} is complete already")
    else:
        left = [point for point in trials if row_of(config, point, "")["state"] != FINISHED]
        say(f"tune: {len(trials)} trials, {config.concurrent} at a time; output {run.location.uri}")
        if len(left) < len(trials):
            say(f"tune: finished already: {len(trials) - len(left)}; left: {len(left)}")
        reasons = {}
        if left:
            connect(config.runtime, "tune", run.location.uri)
            check_concurrency(config, left)
            reasons = sweep(config, left, run.location)
        conclude(config, run, [row_of(config, point, reasons.get(json.dumps(point), "")) for point in trials])
    summary = run.summary or {}
    print(table(summary["trials"], config.metric))
    return summary


def conclude(config: TuneConfig, run: Run, rows: list[dict[str, Any]]) -> None:
    """Write trials.json. If all trials are finished, mark the sweep complete; otherwise raise FailedTrialsError."""
    (run.location / TRIALS).write_json(rows)
    finished = [row for row in rows if row["state"] == FINISHED]
    if len(finished) == len(rows):
        run.finish({"best": max(rows, key=lambda row: row[config.metric]), "trials": rows, "metric": config.metric})
        return
    if finished:
        print(table(finished, config.metric))
    others = [row for row in rows if row["state"] != FINISHED]
    shown = "\n  ".join(f"{row['state']}: {text_of(row['point'])}: {row['reason']}" for row in others)
    raise FailedTrialsError(
        f"{len(others)} of {len(rows)} trials are not finished, {len(finished)} are; see "
        f"{(run.location / TRIALS).uri}. The same command again repeats only these:\n  {shown}",
        len(others),
    )


def grid(config: TuneConfig) -> list[Point]:
    """Every combination of the grid, validated as a fine-tuning configuration.

    Raises UserError if two combinations are the same trial, ConfigError if one is not a valid configuration.
    """
    found = points(config.space or DEFAULT_SPACE, to_plain(config.finetune), RESERVED)
    seen: dict[str, Point] = {}
    for point in found:
        content = json.dumps(to_plain(trial_config(config, point)) | {"output": ""}, sort_keys=True)
        if content in seen:  # e.g. values [1, 1.0]
            raise UserError(f"space: {text_of(seen[content])} and {text_of(point)} are the same trial")
        seen[content] = point
    return found


def trial_config(config: TuneConfig, point: Point) -> FinetuneConfig:
    """Fine-tuning configuration of one point of the grid. The name of its output folder is made from the point."""
    plain = with_point(to_plain(config.finetune), point)
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
    plain["output"] = open_storage(config.output, config.storage).joinpath("trials", f"{name_of(point)}-{digest}").uri
    plain["storage"] = to_plain(config.storage)
    try:
        return to_dataclass(FinetuneConfig, plain)
    except ConfigError as error:
        raise ConfigError(f"space: {text_of(point)} cannot be: {str(error).removeprefix('configuration: ')}") from None


def check_trials(config: TuneConfig, trials: list[Point]) -> None:
    """Check the inputs and the number of workers of all trials. Inputs that trials share are checked once. Raises UserError."""
    seen = set()
    for point in trials:
        trial = trial_config(config, point)
        inputs = (
            trial.setting,
            trial.checkpoint,
            trial.source_set,
            trial.target_set,
            tuple(trial.augment.image_size),
            str(trial.overrides),
        )
        try:
            cut = with_micro_batches(trial, open_storage(trial.output, trial.storage))
            trial.scaling.sizes(shared_micro_batches(cut))
            if inputs not in seen:
                check_inputs(trial)
        except UserError as error:
            raise UserError(f"space: {text_of(point)} cannot be: {error}") from None
        seen.add(inputs)


def sweep(config: TuneConfig, trials: list[Point], location: Location) -> dict[str, str]:
    """Run the trials with Ray Tune. Returns the reason of each failure ("" for none), by the point as JSON.

    A Tune trial is a light function that starts its own Ray Train run.
    """
    import ray.tune

    known = remembered()

    def trial(parameters: dict[str, Any]) -> None:
        take_over(known)
        forward_lines(board)
        try:
            run_finetune(trial_config(config, json.loads(parameters["point"])))
            ray.tune.report({"reason": ""})
        except Exception as error:  # reported, not raised: the other trials go on
            ray.tune.report({"reason": reason_of(error)})

    with relayed_lines() as board:
        outcome = _run(trial, trials, config, location)
    return {result.config["point"]: (result.metrics or {}).get("reason") or reason_of(result.error) for result in outcome}


def reason_of(error: BaseException | None) -> str:
    """The reason of a failure in one line; "" if there is no error."""
    if error is None:
        return ""
    lines = [line.strip() for line in str(user_error_of(error) or error).splitlines() if line.strip()]
    return hide(lines[-1]) if lines else type(error).__name__


def row_of(config: TuneConfig, point: Point, reason: str) -> dict[str, Any]:
    """Record of one trial: its point, settings, state, reason of a failure and, if finished, metrics."""
    settings = trial_config(config, point)
    folder = open_storage(settings.output, config.storage)
    row: dict[str, Any] = {
        **point,
        "point": point,
        "folder": folder.uri,
        "seed": settings.seed,
        "config": hidden(to_plain(settings)),
    }
    if not (folder / SUMMARY).exists():
        return row | {"state": FAILED if reason else UNFINISHED, "reason": reason or "it was stopped before its end"}
    summary = (folder / SUMMARY).read_json()
    return row | {
        "state": FINISHED,
        "reason": "",
        "weights": summary.get("weights"),
        "clusters": summary.get("clusters") or 0,
        **{name: summary[name] for name in METRICS},
    }


def _run(trial: Callable[[dict[str, Any]], None], trials: list[Point], config: TuneConfig, location: Location) -> Any:
    import ray.tune

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends this program like any other
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
        param_space={"point": ray.tune.grid_search([json.dumps(point) for point in trials])},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=config.concurrent),
        run_config=ray.tune.RunConfig(
            name="ray_tune", storage_path=location.path, verbose=0, storage_filesystem=location.filesystem
        ),
    )
    return tuner.fit()


def check_concurrency(config: TuneConfig, trials: list[Point]) -> None:
    """Check that the workers of all concurrent trials fit the cluster. Raises UserError if they do not.

    Trials whose workers cannot all start would wait for each other forever.
    """
    import ray

    if autoscales():
        return  # more nodes may come
    together = min(config.concurrent, len(trials))
    scalings = [trial_config(config, point).scaling for point in trials]
    for kind, own, each in (("CPU", TRIAL_CPUS, "cpus_per_worker"), ("GPU", 0.0, "gpus_per_worker")):
        needs = sorted((scaling.fewest * getattr(scaling, each) + own for scaling in scalings), reverse=True)
        needed, available = sum(needs[:together]), ray.cluster_resources().get(kind, 0)
        if needed > available + (own and 1e-9):
            raise UserError(
                f"{together} trials at a time need {needed:g} {kind}, this Ray has {available:g}: lower "
                "concurrent or finetune.scaling.workers, or connect to a larger cluster"
            )


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """Text table of the trials, best first: the varied settings and the metrics in per cent."""
    rows = sorted(rows, key=lambda row: -row[metric])
    names = [*rows[0]["point"], *METRICS, "clusters"]
    cells = [
        [
            f"{100 * row[n]:.1f}" if n in METRICS else f"{row[n]:g}" if isinstance(row[n], int | float) else str(row[n])
            for n in names
        ]
        for row in rows
    ]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in [names, *cells])
