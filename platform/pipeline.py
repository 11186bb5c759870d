"""Run all stages from images to an evaluated re-ID model and a report. Complete stages are skipped.

  python -m platform.pipeline experiment=demo                    (synthetic people, tiny sizes: what `make demo` runs)
  python -m platform.pipeline pretrain_set.kind=luperson pretrain_set.path=s3://bucket/LUPerson storage=s3 \\
      target_set.kind=market1501 target_set.path=s3://bucket/Market-1501 settings=[supervised,usl] output=s3://bucket/run
  python -m platform.pipeline experiment=small settings=[] pretrain_set.kind=video pretrain_set.path=street.avi \\
      pretrain_set.detections=street.txt output=runs/street      (a video and nothing else, sizes for a laptop)

Stages: ingest the pre-training, source and target sets; pre-train on all images; fine-tune that model (or a shorter source
proxy) to the target; score every image with the two models (CFS) and select the best part; pre-train on the selected part for
the same number of images seen; fine-tune to the target (supervised, UDA and USL) from random weights, from the full and from
the selected pre-training; report. cfs.controls=[random,inverse] adds pre-trainings on a random part of the same size and on the
part with the lowest scores, as the controls that the selected part must beat. seeds=[0,1,2] repeats all stages but the first
for each seed, in folders seed-0, seed-1, ...; the results are then means with their standard deviation. concurrent=2 runs up to
two stages at a time, those that do not need each other. settings=[] skips the fine-tuning. If there is no target set either,
the stages are: ingest, pre-train, cluster the images (pseudo-identities), report.
The default sizes are those of the published recipe. model@pretrain.model=vit_base_ics, objective@pretrain.objective=moco_v3,
scaling@pretrain.scaling=gpus8 choose others.
Results: report.html and results.json in the output folder. During the run, results.json states for each stage whether it is
running, complete or failed. Running the same command again continues where it was interrupted.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("pipeline")

import math
import os
from dataclasses import replace
from functools import partial
from typing import Any

from platform.cluster import ClusterProgramConfig
from platform.cluster import main as run_cluster
from platform.engine.data.shards import read_manifest
from platform.engine.finetune.supervised import SupervisedConfig
from platform.engine.inference.evaluation import require_splits
from platform.engine.pipeline.results import Results, seed_folder, selection_folder, table
from platform.engine.pipeline.sets import check_sets, is_given, of_set, parts_of
from platform.engine.pipeline.stages import Stage, run_in_order
from platform.engine.pipeline.together import run_together
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.runs.run_folder import VOLATILE, open_run
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.pipeline_settings import INVERSE_PART, RANDOM_PART, SELECTED, PipelineConfig
from platform.engine.schemas.pretrain_settings import DataConfig, LengthConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import Location, open_storage
from platform.engine.train.scaling import require_room
from platform.finetune import FinetuneConfig
from platform.finetune import main as run_finetune
from platform.ingest import IngestConfig
from platform.ingest import main as run_ingest
from platform.pretrain import main as run_pretrain
from platform.report import ReportConfig
from platform.report import main as run_report
from platform.score import ScoreConfig
from platform.score import main as run_score
from platform.select import SelectConfig
from platform.select import main as run_select

SPLITS = {"pretrain": ["train"], "source": ["train"], "target": ["train", "query", "gallery"]}


def main(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage that is not complete and keep results.json up to date. Returns the collected results.

    Raises UserError for data sets that are not named or do not exist, and the error of the first stage that fails.
    """
    check_sets(config)  # check first: a forgotten set must not become the configuration of the output folder
    run = open_run("pipeline", config.output, config, config.storage, volatile=(*VOLATILE, "concurrent"))
    root = run.location
    story = stages(config, root)
    if not is_given(config, "target"):
        say("pipeline: settings=[] and no target_set: ingest, pre-training, clusters and report only")
    if is_given(config, "source") and "uda" not in config.settings:
        say("pipeline: source_set is not read: settings has no uda")
    results = Results(root, config.seeds)
    connect(with_room(config), "pipeline", root.uri)
    tell_idle_gpus(
        {
            "pretrain.scaling.gpus_per_worker": config.pretrain.scaling.gpus_per_worker,
            "finetune.scaling.gpus_per_worker": config.finetune.scaling.gpus_per_worker,
            "pool.gpus_per_actor": config.pool.gpus_per_actor,
        }
    )
    if config.concurrent == 1:
        run_in_order(story, results)
    else:
        groups = [config.pretrain.scaling, config.finetune.scaling]
        require_room(f"{config.concurrent} stages", groups, config.concurrent, ["pretrain.scaling", "finetune.scaling"])
        run_together(story, results, config.concurrent)
    final = results.collect()
    run.finish({"results": final})
    say(f"--- report: {(root / 'report.html').uri}")
    print(table(final))
    return final


def stages(config: PipelineConfig, root: Location) -> list[Stage]:
    """Every stage, in the order in which they run one after the other."""
    story = [Stage(f"ingest-{part}", partial(ingest, config, part)) for part in parts_of(config)]
    sets = tuple(stage.name for stage in story)
    for folder, own in runs_of(config).items():
        for stage in training_stages(own, root / folder if folder else root):
            name, *needs = (f"{folder}/{one}" if folder else one for one in (stage.name, *stage.needs))
            story.append(stage._replace(name=name, needs=(*sets, *needs)))
    everything = tuple(stage.name for stage in story)
    return [*story, Stage("report", partial(run_report, ReportConfig(run=root.uri, storage=config.storage)), everything)]


def runs_of(config: PipelineConfig) -> dict[str, PipelineConfig]:
    """Folder below the output -> the configuration of the runs in it: one for each of the seeds, or the output itself."""
    return {seed_folder(seed): config.with_seed(seed) for seed in config.seeds} or {"": config}


def training_stages(config: PipelineConfig, root: Location) -> list[Stage]:
    """The stages of one seed, from the pre-training to the last fine-tuning, with their runs below `root`."""
    full = Stage("pretrain-full", partial(pretrain, config, root, "full"))
    if not is_given(config, "target"):
        return [full, Stage("cluster", partial(cluster, config, root), (full.name,), pool=True)]
    return [full, *selection_stages(config, root), *finetune_stages(config, root)]


def selection_stages(config: PipelineConfig, root: Location) -> list[Stage]:
    """The stages from the full pre-training to those on parts of the images."""
    proxy, how = source_proxy(config), config.cfs
    story, needed = [], "pretrain-full"
    if proxy != "pretrain/full":
        needed = "source-proxy"
        story.append(Stage(needed, partial(pretrain_on, config, root, proxy, samples=how.proxy_samples)))
    tuned = partial(fine_tune, config, root, how.target_proxy, proxy, "proxy/target", supervised=how.supervised)
    story += [
        Stage("target-proxy", tuned, (needed,)),
        Stage("score", partial(score, config, root), ("target-proxy",), pool=True),
    ]
    for part in how.parts:
        name = "select" if part == SELECTED else f"select-{part}"
        story += [
            Stage(name, partial(select, config, root, part), () if part == RANDOM_PART else ("score",)),
            Stage(f"pretrain-{part}", partial(pretrain, config, root, part), (name,)),
        ]
    return story


def finetune_stages(config: PipelineConfig, root: Location) -> list[Stage]:
    """A fine-tuning stage for every setting and every initialization."""
    story = []
    for setting in config.settings:
        for init in ("random", "full", *config.cfs.parts):
            from_run, needs = ("", ()) if init == "random" else (f"pretrain/{init}", (f"pretrain-{init}",))
            stage = partial(fine_tune, config, root, setting, from_run, f"finetune/{setting}-{init}")
            story.append(Stage(f"finetune-{setting}-{init}", stage, needs))
    return story


def with_room(config: PipelineConfig) -> RuntimeConfig:
    """The connection to Ray; a local Ray gets CPUs for all stages that run at the same time, and for their reading."""
    if config.runtime.num_cpus or config.concurrent == 1:
        return config.runtime
    each = max(one.workers * one.cpus_per_worker for one in (config.pretrain.scaling, config.finetune.scaling)) + 1
    return replace(config.runtime, num_cpus=max(4, os.cpu_count() or 1, math.ceil(each * config.concurrent) + 1))


def source_proxy(config: PipelineConfig) -> str:
    """Folder of the pre-training run that serves as source proxy, relative to the output folder."""
    return "proxy/source" if config.cfs.proxy_samples else "pretrain/full"


def data_of(config: PipelineConfig, part: str) -> Location:
    """The shards of one of the data sets, the same for all seeds. part: pretrain, source or target."""
    return open_storage(config.output, config.storage).joinpath("data", part)


def ingest(config: PipelineConfig, part: str) -> None:
    """Ingest one of the data sets. part: pretrain, source or target."""
    shards = data_of(config, part)
    with of_set(part):
        run_ingest(
            IngestConfig(
                raw=getattr(config, f"{part}_set"),
                output=shards.uri,
                row_group_rows=config.row_group_rows,
                storage=config.storage,
                runtime=config.runtime,
            )
        )
        require_splits(shards, SPLITS[part])  # check now, not after days of pre-training


def pretrain(config: PipelineConfig, root: Location, part: str) -> None:
    """Pre-train on all images (full) or on a part of them. All these runs see the same number of images."""
    selection = "" if part == "full" else selection_folder(part)
    length = config.pretrain.length
    samples = length.samples or round(length.epochs * read_manifest(data_of(config, "pretrain")).num_rows)
    pretrain_on(config, root, f"pretrain/{part}", samples, selection)


def pretrain_on(config: PipelineConfig, root: Location, name: str, samples: int, selection: str = "") -> None:
    """A pre-training in the folder `name` below `root`. selection: folder of a selection below `root`; "": all images."""
    target = data_of(config, "target").uri if is_given(config, "target") else ""
    run_pretrain(
        replace(
            config.pretrain,
            output=(root / name).uri,
            storage=config.storage,
            runtime=config.runtime,
            data=DataConfig(uri=data_of(config, "pretrain").uri, selection=(root / selection).uri if selection else ""),
            length=LengthConfig(epochs=config.pretrain.length.epochs, samples=samples),
            probe=replace(config.pretrain.probe, uri=target),
        )
    )


def cluster(config: PipelineConfig, root: Location) -> None:
    """Pseudo-identities of the pre-training images, with the clustering settings of unsupervised fine-tuning."""
    how = config.finetune.unsupervised
    run_cluster(
        ClusterProgramConfig(
            checkpoint=(root / "pretrain" / "full").uri,
            data=data_of(config, "pretrain").uri,
            output=(root / "clusters").uri,
            cluster=how.cluster,
            neighbors=how.neighbors,
            pool=config.pool,
            storage=config.storage,
            runtime=config.runtime,
        )
    )


def score(config: PipelineConfig, root: Location) -> None:
    """Compute the CFS of every pre-training image."""
    run_score(
        ScoreConfig(
            data=data_of(config, "pretrain").uri,
            source_proxy=(root / source_proxy(config)).uri,
            target_proxy=(root / "proxy" / "target").uri,
            output=(root / "scores").uri,
            pool=config.pool,
            storage=config.storage,
            runtime=config.runtime,
        )
    )


def select(config: PipelineConfig, root: Location, part: str) -> None:
    """Select a part of the pre-training images: those with the best scores (selected) or the worst, or a random part.

    part: one of `CfsConfig.parts`.
    """
    by: dict[str, Any] = {"random": True, "seed": config.seed} if part == RANDOM_PART else {"scores": (root / "scores").uri}
    if part == SELECTED and config.cfs.among:
        by |= {"among": config.cfs.among, "seed": config.seed}
    run_select(
        SelectConfig(
            data=data_of(config, "pretrain").uri,
            output=(root / selection_folder(part)).uri,
            fraction=config.cfs.fraction,
            inverse=part == INVERSE_PART,
            storage=config.storage,
            **by,
        )
    )


def fine_tune(
    config: PipelineConfig, root: Location, setting: str, init: str, name: str, supervised: SupervisedConfig | None = None
) -> None:
    """One fine-tuning run with its evaluation.

    Args:
        init: folder of the pre-training run to start from, relative to `root`; "": random weights.
        name: folder of the run, relative to `root`.
        supervised: replaces finetune.supervised; None: use that.
    """
    stage = config.finetune
    run_finetune(
        FinetuneConfig(
            output=(root / name).uri,
            setting=setting,
            checkpoint=(root / init).uri if init else "",
            seed=stage.seed,
            source_set=data_of(config, "source").uri if setting == "uda" else "",
            target_set=data_of(config, "target").uri,
            model=replace(config.pretrain.model),
            supervised=supervised or stage.supervised,
            unsupervised=stage.unsupervised,
            augment=stage.augment,
            evaluate=stage.evaluate,
            scaling=stage.scaling,
            tracking=TrackingConfig(),
            max_corrupt_share=config.pool.max_corrupt_share,
            storage=config.storage,
            runtime=config.runtime,
        )
    )
