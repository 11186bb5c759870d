"""The configuration of each program that a pipeline runs, from the settings of the pipeline."""

from dataclasses import replace
from typing import Any, NamedTuple

from platform.engine.data.shards import read_manifest
from platform.engine.pipeline.results import selection_folder
from platform.engine.pipeline.sets import is_given
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.schemas.cluster_settings import ClusterProgramConfig
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.ingest_settings import IngestConfig
from platform.engine.schemas.pipeline_settings import INVERSE_PART, RANDOM_PART, SELECTED, PipelineConfig
from platform.engine.schemas.pretrain_settings import DataConfig, LengthConfig, PretrainConfig
from platform.engine.schemas.score_settings import ScoreConfig
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.storage.location import Location, open_storage
from reidssl.models.model_config import VitConfig


class Tuning(NamedTuple):
    """A fine-tuning stage."""

    stage: str
    """Name of the stage."""
    setting: str
    init: str
    """Folder of the pre-training run to start from, relative to that of the seed; "": random weights."""
    name: str
    """Folder of the run, relative to that of the seed."""
    proxy: bool = False
    """Whether it makes the target proxy, with the settings of `cfs`."""


def source_proxy(config: PipelineConfig) -> str:
    """Folder of the pre-training run that serves as source proxy, relative to the output folder."""
    return "proxy/source" if config.cfs.proxy_samples else "pretrain/full"


def target_proxy(config: PipelineConfig) -> Tuning:
    """The fine-tuning of the source proxy to the target."""
    return Tuning("target-proxy", config.cfs.target_proxy, source_proxy(config), "proxy/target", proxy=True)


def tunings(config: PipelineConfig) -> list[Tuning]:
    """A fine-tuning for every setting and every initialization."""
    found = []
    for setting in config.settings:
        for init in ("random", "full", *config.cfs.parts):
            start = "" if init == "random" else f"pretrain/{init}"
            found.append(Tuning(f"finetune-{setting}-{init}", setting, start, f"finetune/{setting}-{init}"))
    return found


def data_of(config: PipelineConfig, part: str) -> Location:
    """The shards of one of the data sets, the same for all seeds. part: pretrain, source or target."""
    return open_storage(config.output, config.storage).joinpath("data", part)


def ingest_config(config: PipelineConfig, part: str) -> IngestConfig:
    """The ingest of one of the data sets. part: pretrain, source or target."""
    return IngestConfig(
        raw=getattr(config, f"{part}_set"),
        output=data_of(config, part).uri,
        row_group_rows=config.row_group_rows,
        storage=config.storage,
        runtime=config.runtime,
    )


def pretrainings(config: PipelineConfig) -> dict[str, str]:
    """Stage of each pre-training -> its folder, relative to that of the seed."""
    if not is_given(config, "target"):
        return {"pretrain-full": "pretrain/full"}
    own = {"source-proxy": "proxy/source"} if config.cfs.proxy_samples else {}
    return {"pretrain-full": "pretrain/full"} | own | {f"pretrain-{part}": f"pretrain/{part}" for part in config.cfs.parts}


def samples_of(config: PipelineConfig, stage: str = "pretrain-full") -> int:
    """The number of images that a pre-training sees: the source proxy has its own. The set must be ingested."""
    if stage == "source-proxy":
        return config.cfs.proxy_samples
    length = config.pretrain.length
    return length.samples or round(length.epochs * read_manifest(data_of(config, "pretrain")).num_rows)


def pretrain_config(config: PipelineConfig, root: Location, name: str, samples: int, selection: str = "") -> PretrainConfig:
    """A pre-training in the folder `name` below `root`. selection: folder of a selection below `root`; "": all images."""
    return replace(
        config.pretrain,
        output=(root / name).uri,
        storage=config.storage,
        runtime=config.runtime,
        data=DataConfig(uri=data_of(config, "pretrain").uri, selection=(root / selection).uri if selection else ""),
        length=LengthConfig(epochs=config.pretrain.length.epochs, samples=samples),
        probe=replace(config.pretrain.probe, uri=data_of(config, "target").uri if is_given(config, "target") else ""),
    )


def finetune_config(config: PipelineConfig, root: Location, tuning: Tuning) -> FinetuneConfig:
    """A fine-tuning run with its evaluation.

    The target proxy has the image size of the pre-training, since CFS compares the features of the two models for the same
    images. All other runs have that of finetune.augment, those from random weights, too.

    Raises ValueError for settings that do not go together.
    """
    stage, model = config.finetune, config.pretrain.model
    augment = replace(stage.augment, image_size=model.image_size) if tuning.proxy else stage.augment
    return FinetuneConfig(
        output=(root / tuning.name).uri,
        setting=tuning.setting,
        checkpoint=(root / tuning.init).uri if tuning.init else "",
        seed=stage.seed,
        source_set=data_of(config, "source").uri if tuning.setting == "uda" else "",
        target_set=data_of(config, "target").uri,
        model=_resized(model, augment.image_size),
        supervised=config.cfs.supervised if tuning.proxy else stage.supervised,
        unsupervised=stage.unsupervised,
        augment=augment,
        evaluate=stage.evaluate,
        scaling=stage.scaling,
        tracking=TrackingConfig(),
        max_corrupt_share=config.pool.max_corrupt_share,
        storage=config.storage,
        runtime=config.runtime,
    )


def _resized(model: VitConfig, image_size: tuple[int, int]) -> VitConfig:
    try:
        return replace(model, image_size=image_size)
    except ValueError as error:
        raise ValueError(f"augment.{error}") from None


def cluster_config(config: PipelineConfig, root: Location) -> ClusterProgramConfig:
    """Pseudo-identities of the pre-training images, with the clustering settings of unsupervised fine-tuning."""
    how = config.finetune.unsupervised
    return ClusterProgramConfig(
        checkpoint=(root / "pretrain" / "full").uri,
        data=data_of(config, "pretrain").uri,
        output=(root / "clusters").uri,
        cluster=how.cluster,
        neighbors=how.neighbors,
        pool=config.pool,
        storage=config.storage,
        runtime=config.runtime,
    )


def score_config(config: PipelineConfig, root: Location) -> ScoreConfig:
    """The CFS of every pre-training image."""
    return ScoreConfig(
        data=data_of(config, "pretrain").uri,
        source_proxy=(root / source_proxy(config)).uri,
        target_proxy=(root / "proxy" / "target").uri,
        output=(root / "scores").uri,
        pool=config.pool,
        storage=config.storage,
        runtime=config.runtime,
    )


def select_config(config: PipelineConfig, root: Location, part: str) -> SelectConfig:
    """The selection of a part of the images: those with the best scores (selected) or the worst, or a random part.

    part: one of `CfsConfig.parts`.
    """
    by: dict[str, Any] = {"random": True, "seed": config.seed} if part == RANDOM_PART else {"scores": (root / "scores").uri}
    if part == SELECTED and config.cfs.among:
        by |= {"among": config.cfs.among, "seed": config.seed}
    return SelectConfig(
        data=data_of(config, "pretrain").uri,
        output=(root / selection_folder(part)).uri,
        fraction=config.cfs.fraction,
        inverse=part == INVERSE_PART,
        storage=config.storage,
        **by,
    )
