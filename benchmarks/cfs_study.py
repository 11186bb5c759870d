"""Does the Catastrophic Forgetting Score choose better images than chance? On synthetic people with planted useless images.

  python -m benchmarks.cfs_study --output runs/cfs-study               3 seeds, sized for under an hour on 2 cores
  python -m benchmarks.cfs_study --output runs/cfs-study --finetune    also fine-tunes every backbone with the target's identities
  python -m benchmarks.cfs_study --output runs/cfs-people pretrain_set.kind=folder pretrain_set.path=crops \\
      target_set.kind=market1501 target_set.path=Market-1501-v15.09.15    the same on images of real people

For every seed: people and cameras are drawn (synthetic people), a backbone is pre-trained on all images and fine-tuned to the
target, and all images are scored with the two. Then backbones are pre-trained on 25, 50 and 75 % of the images: those with the
best scores (cfs), a random part (random), and those with the worst scores (inverse). All backbones see the same number of
images, so a smaller part is seen more often. The result is the mAP of the frozen backbone on the target's test people, as mean
and standard deviation over the seeds, in study.json and study.md, and as a chart in study.svg.

Sizes are those of the demo but for `--samples`. Every step is a run folder, so the same command continues an interrupted study.
Further arguments are overrides of platform.pipeline, such as pretrain_set.synthetic.num_pretrain=4096.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from platform import evaluate, pipeline
from platform.engine.config.compose import load_config
from platform.engine.errors import UserError
from platform.engine.pipeline.results import spread as spread_text
from platform.engine.report.plots.curves import Series, line_chart
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.evaluate_settings import EvaluateProgramConfig
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.storage.location import Location, open_storage
from platform.select import main as run_select

KINDS = ("cfs", "random", "inverse")
FULL = "full"


def config_of(output: Path, seed: int, samples: int, overrides: list[str]) -> PipelineConfig:
    """The sizes of one seed: people, cameras, batches and weights all depend on the seed. Images of real people do not."""
    real = any(text.startswith("pretrain_set.kind=") for text in overrides)
    worlds = [] if real else [f"{part}_set.synthetic.seed={seed}" for part in ("pretrain", "source", "target")]
    sizes = [f"pretrain.length.samples={samples}", "pretrain.probe.every_steps=1000000"]
    recipe = [] if any(text.startswith("experiment=") for text in overrides) else ["experiment=demo"]
    given = [*recipe, "settings=[]", f"seed={seed}", f"output={output}/seed-{seed}", *worlds, *sizes, *overrides]
    return load_config(PipelineConfig, "pipeline", given)


def study_seed(config: PipelineConfig, fractions: list[float], finetune: bool) -> dict[str, dict[str, float]]:
    """Name of each backbone ("full", "cfs-0.25", ...) -> its results. Steps that are complete are skipped."""
    root = open_storage(config.output, config.storage)
    connect(config.runtime)
    for part in ("pretrain", "target"):
        pipeline.ingest(config, part)
    pipeline.pretrain(config, root, FULL)  # also the source proxy
    pipeline.fine_tune(config, root, pipeline.target_proxy(config))
    pipeline.score(config, root)
    auc = (root / "scores" / "summary.json").read_json().get("auc_planted")
    results = {}
    for name, fraction in [(FULL, 1.0)] + [(kind, fraction) for fraction in fractions for kind in KINDS]:
        label = name if name == FULL else f"{name}-{fraction:g}"
        say(f"--- seed {config.seed}: {label}")
        selection = "" if name == FULL else f"selection/{label}"
        planted = select(config, root, name, fraction, selection) if selection else {}
        pipeline.pretrain_on(config, root, f"pretrain/{label}", config.pretrain.length.samples, selection)
        results[label] = {"auc": auc, "mAP": frozen(config, root, label), **planted}
        if finetune:
            tuning = pipeline.Tuning(f"finetune-{label}", "supervised", f"pretrain/{label}", f"finetune/{label}")
            pipeline.fine_tune(config, root, tuning)
            results[label]["mAP_finetuned"] = (root / "finetune" / label / "summary.json").read_json()["mAP"]
    return results


def select(config: PipelineConfig, root: Location, kind: str, fraction: float, name: str) -> dict[str, float]:
    """Select a part of the images. Returns the share of planted images in it, if there are such images."""
    how: dict[str, Any] = {"random": True, "seed": config.seed} if kind == "random" else {"scores": (root / "scores").uri}
    summary = run_select(
        SelectConfig(
            data=(root / "data" / "pretrain").uri,
            output=(root / name).uri,
            fraction=fraction,
            inverse=kind == "inverse",
            storage=config.storage,
            **how,
        )
    )
    share = summary.get("planted_share")
    return {"planted": share["selected"]} if share else {}


def frozen(config: PipelineConfig, root: Location, label: str) -> float:
    """mAP of the frozen backbone on the target's queries and gallery."""
    output = root / "evaluation" / label
    if not (output / "evaluation.json").exists():
        evaluate.main(
            EvaluateProgramConfig(
                checkpoints=[(root / "pretrain" / label).uri],
                test_sets=[(root / "data" / "target").uri],
                output=output.uri,
                pool=config.pool,
                storage=config.storage,
                runtime=config.runtime,
            )
        )
    return float((output / "evaluation.json").read_json()[0]["mAP"])


def spread(found: list[dict[str, dict[str, float]]], metric: str) -> dict[str, tuple[float, float]]:
    """Name of a backbone -> (mean, standard deviation over the seeds, 0 for a single one) of a metric that it has."""
    values = {label: [one[label][metric] for one in found] for label in found[0] if metric in found[0][label]}
    return {
        label: (float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else 0.0) for label, each in values.items()
    }


def table(found: list[dict[str, dict[str, float]]], fractions: list[float], metric: str) -> str:
    """A Markdown table of a metric in per cent, mean and standard deviation; a row for each kind."""
    of = spread(found, metric)
    lines = ["| images | " + " | ".join(f"{fraction:.0%}" for fraction in fractions) + " |", "|---" * (len(fractions) + 1) + "|"]
    for kind in KINDS:
        cells = [of[f"{kind}-{fraction:g}"] for fraction in fractions]
        lines.append(f"| {kind} | " + " | ".join(f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in cells) + " |")
    if FULL in of:
        lines.append(f"\nAll images: {100 * of[FULL][0]:.1f} ± {100 * of[FULL][1]:.1f}")
    return "\n".join(lines)


def chart(found: list[dict[str, dict[str, float]]], fractions: list[float]) -> str:
    """mAP by the share of images, a line for each kind and the full set as reference, as SVG."""
    of = spread(found, "mAP")
    lines = [
        Series(kind, fractions, [100 * of[f"{kind}-{fraction:g}"][0] for fraction in fractions], style)
        for style, kind in enumerate(KINDS, 1)
    ]
    title, reference = "mAP in per cent, mean over seeds", ("all images", 100 * of[FULL][0])
    return line_chart(lines, title=title, x_label="share of the images", reference=reference, x_low=0.0, y_low=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--samples", type=int, default=8192, help="images that every backbone sees (default 8192)")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--finetune", action="store_true", help="also fine-tune every backbone to the target")
    parser.add_argument("overrides", nargs="*", help="overrides of platform.pipeline")
    arguments = parser.parse_intermixed_args()
    output, found = arguments.output.resolve(), []
    for seed in range(arguments.seeds):
        found.append(
            study_seed(config_of(output, seed, arguments.samples, arguments.overrides), arguments.fractions, arguments.finetune)
        )
    results = open_storage(str(output))
    (results / "study.json").write_json({"samples": arguments.samples, "seeds": found})
    aucs = [one[FULL]["auc"] for one in found if one[FULL]["auc"] is not None]
    auc = f", AUC of the scores against planted images {spread_text(aucs, '.3f')}" if aucs else ""
    text = f"{arguments.seeds} seeds, {arguments.samples:,} images seen{auc}\n"
    titles = {"mAP": "frozen", "mAP_finetuned": "fine-tuned", "planted": "planted images in the part"}
    for metric in ("mAP", *["mAP_finetuned"] * arguments.finetune, *["planted"] * bool(aucs)):
        text += f"\n{titles[metric]}, %\n\n{table(found, arguments.fractions, metric)}\n"
    (results / "study.md").write_text(text)
    (results / "study.svg").write_text(chart(found, arguments.fractions))
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:  # also a stop by Ctrl-C or SIGTERM
        sys.exit(f"error: {error}")
