"""The checks of a pipeline: of the settings of all stages before any work, and of each data set once it is ingested.

They are those of the programs, and they come before the configuration is stored: a late stage must not refuse, after days of
pre-training, what could be known at the start.
"""

from platform.engine.data.shards import MANIFEST, read_manifest
from platform.engine.errors import UserError
from platform.engine.finetune.inputs import (
    check_clusters,
    check_distinct,
    check_labels,
    check_phases,
    check_target,
    shared_micro_batches,
    with_micro_batches,
)
from platform.engine.inference.evaluation import require_splits
from platform.engine.pipeline.configurations import (
    data_of,
    finetune_config,
    pretrain_config,
    pretrainings,
    samples_of,
    score_config,
    select_config,
    target_proxy,
    tunings,
)
from platform.engine.pipeline.keys import PRETRAIN, PRETRAIN_PHRASES, finetune_keys, keys_of, settings_of
from platform.engine.pipeline.sets import is_given, parts_of
from platform.engine.pretrain.plan import plan_of
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.storage.location import Location, open_storage

SPLITS = {"pretrain": ["train"], "source": ["train"], "target": ["train", "query", "gallery"]}
PROXY_ADVICE = {"train longer": "raise cfs.proxy_samples"}


def check_settings(config: PipelineConfig, root: Location) -> None:
    """Build the configuration of every stage of one seed, and check what needs no data. Raises UserError.

    root: folder of the seed. A stage that is complete may have had other workers.
    """
    for stage, name in pretrainings(config).items():
        with settings_of(stage, PretrainConfig, PRETRAIN, PRETRAIN_PHRASES):
            run = pretrain_config(config, root, name, config.pretrain.length.samples)
            if not (root / name / SUMMARY).exists():
                run.scaling.sizes(run.stream.micro_batches_per_step)
    if not is_given(config, "target"):
        return
    with settings_of("select", SelectConfig, {}):
        score_config(config, root)
        for part in config.cfs.parts:
            select_config(config, root, part)
    for tuning in (target_proxy(config), *tunings(config)):
        with settings_of(tuning.stage, *finetune_keys(tuning.proxy)):
            tuned = finetune_config(config, root, tuning)
            location = root / tuning.name
            if not (location / SUMMARY).exists():
                cut = with_micro_batches(tuned, location)
                cut.scaling.sizes(shared_micro_batches(cut))
                check_phases(tuned, tuned.model)


def check_data(config: PipelineConfig, part: str) -> None:
    """Check that an ingested set has what all later stages need of it. part: pretrain, source or target. Raises UserError.

    No other set is read, since they may not be there yet; the last of source and target also checks that they differ.
    """
    shards, root = data_of(config, part), open_storage(config.output, config.storage)
    require_splits(shards, SPLITS[part])
    if part == "pretrain":
        for stage in ("pretrain-full", "source-proxy"):  # those on parts of the images see as many
            if name := pretrainings(config).get(stage):
                with keys_of(PretrainConfig, PRETRAIN, PROXY_ADVICE if stage == "source-proxy" else None):
                    plan_of(pretrain_config(config, root, name, samples_of(config, stage)))
        if not is_given(config, "target"):
            check_number(config, read_manifest(shards).num_rows)
        return
    labeled = {f"{one}_set": data_of(config, one) for one in parts_of(config) if one != "pretrain"}
    check_distinct({name: read_manifest(one).checksum for name, one in labeled.items() if (one / MANIFEST).exists()})
    if part == "target":
        with keys_of(PretrainConfig, PRETRAIN):
            require_splits(shards, [config.pretrain.probe.split])
    for tuning in {(one.setting, one.proxy): one for one in (target_proxy(config), *tunings(config))}.values():
        with keys_of(*finetune_keys(tuning.proxy)):
            run = finetune_config(config, root, tuning)
            if part == "target":
                check_target(run)
                check_clusters(run)
            if part == ("source" if tuning.setting == "uda" else "target"):
                check_labels(run)


def check_number(config: PipelineConfig, images: int) -> None:
    """Check that there is an image for each cluster of the pre-training images. Raises UserError."""
    wanted = config.finetune.unsupervised.cluster
    if wanted.algorithm == "kmeans" and wanted.num_clusters > images:
        raise UserError(
            f"finetune.unsupervised.cluster.num_clusters must be at most {images:,}, the number of images: got "
            f"{wanted.num_clusters:,}"
        )
