"""Ray Tune sweep over fine-tuning: every trial is a fine-tuning run of its own, with its own Ray Train workers.

  python -m platform.tune finetune.init=runs/first finetune.target=runs/market output=runs/sweep
  python -m platform.tune '+space.unsupervised.cluster={eps:[0.4,0.5],k1:[20,30]}' output=runs/sweep ...

space: a grid; keys are settings of platform.finetune, values the lists to try. The default sweeps eps of the USL setting.
An interrupted sweep continues: finished trials are read, unfinished ones resume from their last epoch.
"""

from platform.engine.command import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelt key are answered at once
    run_program("tune")

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any

from platform.engine.config import to_dataclass, to_plain
from platform.engine.errors import UserError
from platform.engine.runs import SUMMARY, VOLATILE, open_run
from platform.engine.runtime import connect, forward_lines, relayed_lines, say
from platform.engine.schemas.tune import METRICS, TuneConfig
from platform.engine.storage import Location, open_storage
from platform.finetune import FinetuneConfig, check_inputs
from platform.finetune import main as run_finetune

DEFAULT_SPACE = {"unsupervised": {"cluster": {"eps": [0.4, 0.5, 0.6, 0.7]}}}


def main(config: TuneConfig) -> dict[str, Any]:
    """Run the grid; returns {"best", "trials"}."""
    trials = grid(config)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():
        for point in trials:  # first: a mistyped path must not become the configuration of the output folder
            check_inputs(trial_config(config, point))
    run = open_run("tune", config.output, config, config.storage, volatile=(*VOLATILE, "concurrent"))
    if run.summary:
        say(f"tune: {run.location.uri} is complete already")
    else:
        connect(config.runtime)
        check_concurrency(config)
        say(f"tune: {len(trials)} trials, {config.concurrent} at a time; output {run.location.uri}")
        results = sweep(config, trials, run.location)
        best = max(results, key=lambda row: row[config.metric])
        run.finish({"best": best, "trials": results, "metric": config.metric})
    summary = run.summary or {}
    print(table(summary["trials"], config.metric))
    return summary


def grid(config: TuneConfig) -> list[dict[str, Any]]:
    """Every combination, each validated as a fine-tuning configuration before anything runs."""
    space = flat(config.space or DEFAULT_SPACE)
    trials = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    for point in trials:
        trial_config(config, point)
    return trials


def flat(space: dict[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Nested settings -> {"a.b.c": values}. Raises UserError for anything but non-empty lists at the ends."""
    found: dict[str, list[Any]] = {}
    for key, value in space.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value:
            found[prefix + key] = value
        else:
            raise UserError(f"space.{prefix}{key} must be a list of values to try, e.g. [0.5,0.6]: got {value!r}")
    return found


def trial_config(config: TuneConfig, point: dict[str, Any]) -> FinetuneConfig:
    """The common settings with one point of the grid; its folder is named by the point."""
    plain = to_plain(config.finetune)
    for key, value in point.items():
        *path, last = key.split(".")
        place: Any = plain
        for part in path:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if last not in place:
            raise UserError(f"space: '{key}' is no setting of platform.finetune; its --help lists them")
        place[last] = value
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
    name = "-".join(f"{key.split('.')[-1]}={value}" for key, value in point.items()).replace("/", "_")
    plain["output"] = open_storage(config.output, config.storage).uri.rstrip("/") + f"/trials/{name}-{digest}"
    plain["storage"] = to_plain(config.storage)
    return to_dataclass(FinetuneConfig, plain)


def sweep(config: TuneConfig, trials: list[dict[str, Any]], location: Location) -> list[dict[str, Any]]:
    """Ray Tune runs the trials; a trial is a light function that starts its own Train run."""
    import ray.tune

    def trial(parameters: dict[str, Any]) -> None:
        forward_lines(board)
        point = json.loads(parameters["point"])
        summary = run_finetune(trial_config(config, point))
        ray.tune.report({name: summary[name] for name in METRICS} | {"clusters": summary.get("clusters") or 0})

    with relayed_lines() as board:
        outcome = _run(trial, trials, config, location)
    results, failures = [], []
    for result in outcome:
        point = json.loads(result.config["point"])
        if result.error:
            failures.append(f"{point}: {str(result.error).strip().splitlines()[-1]}")
        else:
            results.append(point | {name: result.metrics[name] for name in (*METRICS, "clusters")})
    if failures:
        raise UserError(f"{len(failures)} of {len(trials)} trials failed; run the same command again to repeat them:\n  "
                        + "\n  ".join(failures))
    return results


def _run(trial: Callable[[dict[str, Any]], None], trials: list[dict[str, Any]], config: TuneConfig, location: Location) -> Any:
    import ray.tune

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, {"CPU": 0.01}),
        param_space={"point": ray.tune.grid_search([json.dumps(point) for point in trials])},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=config.concurrent),
        run_config=ray.tune.RunConfig(name="ray_tune", storage_path=location.path, verbose=0,
                                      storage_filesystem=location.filesystem),
    )
    return tuner.fit()


def check_concurrency(config: TuneConfig) -> None:
    """Trials whose workers cannot all start would wait for each other for ever."""
    import ray

    scaling = config.finetune.scaling
    for kind, each in (("CPU", scaling.cpus_per_worker), ("GPU", scaling.gpus_per_worker)):
        needed = config.concurrent * (scaling.min_workers or scaling.workers) * each
        available = ray.cluster_resources().get(kind, 0)
        if needed > available:
            raise UserError(f"{config.concurrent} trials at a time need {needed:g} {kind}, this Ray has {available:g}: lower "
                            "concurrent or finetune.scaling.workers, or connect to a larger cluster")


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """Best first."""
    rows = sorted(rows, key=lambda row: -row[metric])
    names = list(rows[0])
    cells = [[f"{100 * row[n]:.1f}" if n in METRICS else f"{row[n]:g}"
              if isinstance(row[n], int | float) else str(row[n]) for n in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
                     for line in [names, *cells])
