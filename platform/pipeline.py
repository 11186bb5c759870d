"""Run all stages from images to an evaluated re-ID model and a report. Complete stages are skipped.

  python -m platform.pipeline experiment=demo                    (synthetic people, tiny sizes: what `make demo` runs)
  python -m platform.pipeline pretrain_set.kind=luperson pretrain_set.path=s3://bucket/LUPerson storage=s3 \\
      target_set.kind=market1501 target_set.path=s3://bucket/Market-1501 settings=[supervised,usl] output=s3://bucket/run
  python -m platform.pipeline experiment=small settings=[] pretrain_set.kind=video pretrain_set.path=street.avi \\
      pretrain_set.detections=street.txt output=runs/street      (a video and nothing else, sizes for a laptop)

Stages: ingest the target, source and pre-training sets; pre-train on all images; fine-tune that model (or a shorter source
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
from dataclasses import replace
from functools import partial
from typing import Any

from platform.cluster import main as run_cluster
from platform.engine.clustering.sharded_neighbors import check_room
from platform.engine.pipeline.checks import check_data, check_settings
from platform.engine.pipeline.configurations import (
    Tuning,
    cluster_config,
    finetune_config,
    ingest_config,
    pretrain_config,
    samples_of,
    score_config,
    select_config,
    source_proxy,
    target_proxy,
    tunings,
)
from platform.engine.pipeline.keys import PRETRAIN, PRETRAIN_PHRASES, finetune_keys, keys_of
from platform.engine.pipeline.results import Results, seed_folder, selection_folder, table
from platform.engine.pipeline.sets import check_sets, is_given, of_set, parts_of
from platform.engine.pipeline.stages import Stage, run_in_order
from platform.engine.pipeline.together import run_together
from platform.engine.runs.run_folder import VOLATILE, open_run
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.pipeline_settings import RANDOM_PART, SELECTED, PipelineConfig
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import Location, open_storage
from platform.engine.train.scaling import require_room
from platform.finetune import main as run_finetune
from platform.ingest import main as run_ingest
from platform.pretrain import main as run_pretrain
from platform.report import ReportConfig
from platform.report import main as run_report
from platform.score import main as run_score
from platform.select import main as run_select


def main(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage that is not complete and keep results.json up to date. Returns the collected results.

    The configuration is stored once all sets are ingested and can do what later stages need: until then, another command may
    correct it. Raises UserError for settings and data sets that a stage cannot use, and the error of the first stage that fails.
    """
    check_sets(config)  # check first: a forgotten set must not become the configuration of the output folder
    opened = partial(open_run, "pipeline", config.output, config, config.storage, volatile=(*VOLATILE, "concurrent"))
    if config.output:  # otherwise refused below
        for folder, own in runs_of(config).items():
            check_settings(own, open_storage(config.output, config.storage).joinpath(*filter(None, [folder])))
    run = opened(begin=False)
    root = run.location
    story = stages(config, root)
    if not is_given(config, "target"):
        say("pipeline: settings=[] and no target_set: ingest, pre-training, clusters and report only")
    if is_given(config, "source") and "uda" not in config.settings:
        say("pipeline: source_set is not read: settings has no uda")
    results = Results(root, config.seeds)
    results.keep([stage.name for stage in story])
    connect(with_room(config), "pipeline", root.uri)
    tell_idle_gpus(
        {
            "pretrain.scaling.gpus_per_worker": config.pretrain.scaling.gpus_per_worker,
            "finetune.scaling.gpus_per_worker": config.finetune.scaling.gpus_per_worker,
            "pool.gpus_per_actor": config.pool.gpus_per_actor,
        }
    )
    if set(config.settings) - {"supervised"} or config.cfs.target_proxy == "usl":
        check_room(config.finetune.unsupervised.neighbors, config.finetune.scaling, config.concurrent)
    if config.concurrent == 1:
        run_in_order(story, results, begin=opened)
    else:
        groups, reading = [config.pretrain.scaling, config.finetune.scaling], config.pretrain.scaling.reading_cpus
        require_room(
            f"{config.concurrent} stages", groups, config.concurrent, ["pretrain.scaling", "finetune.scaling"], reading=reading
        )
        run_together(story, results, config.concurrent, begin=opened)
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
    tuned = target_proxy(config)
    story += [
        Stage(tuned.stage, partial(fine_tune, config, root, tuned), (needed,)),
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
    return [
        Stage(one.stage, partial(fine_tune, config, root, one), (one.init.replace("/", "-"),) if one.init else ())
        for one in tunings(config)
    ]


def with_room(config: PipelineConfig) -> RuntimeConfig:
    """The connection to Ray; a local Ray gets CPUs for all stages that run at the same time, and for their reading."""
    scaling = config.pretrain.scaling
    if config.runtime.num_cpus or config.concurrent == 1:
        return config.runtime.beside(scaling.workers * scaling.cpus_per_worker, scaling.reading_cpus)
    each = max(one.workers * one.cpus_per_worker for one in (config.pretrain.scaling, config.finetune.scaling)) + 1
    return replace(config.runtime, num_cpus=max(config.runtime.local_cpus, math.ceil(each * config.concurrent) + 1))


def ingest(config: PipelineConfig, part: str) -> None:
    """Ingest one of the data sets, and check it. part: pretrain, source or target."""
    with of_set(part):
        run_ingest(ingest_config(config, part))
        check_data(config, part)


def pretrain(config: PipelineConfig, root: Location, part: str) -> None:
    """Pre-train on all images (full) or on a part of them. All these runs see the same number of images."""
    pretrain_on(config, root, f"pretrain/{part}", samples_of(config), "" if part == "full" else selection_folder(part))


def pretrain_on(config: PipelineConfig, root: Location, name: str, samples: int, selection: str = "") -> None:
    """A pre-training in the folder `name` below `root`. selection: folder of a selection below `root`; "": all images."""
    with keys_of(PretrainConfig, PRETRAIN, PRETRAIN_PHRASES):
        run_pretrain(pretrain_config(config, root, name, samples, selection))


def cluster(config: PipelineConfig, root: Location) -> None:
    """Pseudo-identities of the pre-training images."""
    run_cluster(cluster_config(config, root))


def score(config: PipelineConfig, root: Location) -> None:
    """Compute the CFS of every pre-training image."""
    run_score(score_config(config, root))


def select(config: PipelineConfig, root: Location, part: str) -> None:
    """Select a part of the pre-training images. part: one of `CfsConfig.parts`."""
    run_select(select_config(config, root, part))


def fine_tune(config: PipelineConfig, root: Location, tuning: Tuning) -> None:
    """One fine-tuning run with its evaluation, in a folder below `root`."""
    with keys_of(*finetune_keys(tuning.proxy)):
        run_finetune(finetune_config(config, root, tuning))
