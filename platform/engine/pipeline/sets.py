"""The data sets of a pipeline: which of them it reads, and checks that they are named and exist."""

from collections.abc import Iterator
from contextlib import contextmanager

from platform.engine.data.shards import MANIFEST
from platform.engine.errors import UserError
from platform.engine.ingest.sources import RawConfig, open_source
from platform.engine.pipeline.keys import renamed
from platform.engine.schemas.ingest_settings import IngestConfig
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.storage.location import open_storage

PARTS = ("target", "source", "pretrain")
"""In the order of the ingest: small sets first, so that one that later stages cannot use is known at once."""
ADVICE = {
    "set overwrite=true to replace it": "delete that folder",
    "set overwrite=true to begin anew": "delete that folder",
    "Name another data set": "Delete that folder and name another data set",
}


def is_given(config: PipelineConfig, part: str) -> bool:
    """Whether the user changed any setting of this set."""
    name = f"{part}_set"
    return getattr(config, name) != getattr(PipelineConfig(), name)


def check_sets(config: PipelineConfig) -> None:
    """Raise UserError for a required set that is not named or does not exist. The message has the keys to set."""
    if not is_given(config, "pretrain"):
        raise UserError(
            "pretrain_set is not given: name the images to pre-train on, e.g. pretrain_set.kind=folder "
            "pretrain_set.path=photos (experiment=demo draws synthetic people)"
        )
    if config.settings and not is_given(config, "target"):
        raise UserError(
            f"target_set is not given, and settings=[{','.join(config.settings)}] fine-tune to it: name a set with "
            "identities, e.g. target_set.kind=market1501 target_set.path=Market-1501, or give settings=[] to stop "
            "after pre-training and clustering"
        )
    if "uda" in config.settings and not is_given(config, "source"):
        others = ",".join(one for one in config.settings if one != "uda")
        raise UserError(
            "source_set is not given, and the setting uda starts from it: name a labeled set, e.g. "
            f"source_set.kind=msmt17 source_set.path=MSMT17_V1, or leave uda out: settings=[{others}]"
        )
    for part in parts_of(config):
        manifest = open_storage(config.output, config.storage).joinpath("data", part, MANIFEST) if config.output else None
        if manifest is None or not manifest.exists():  # a set that is ingested already is not read again
            check_set(config, part)


def check_set(config: PipelineConfig, part: str) -> None:
    """Raise UserError if the source of a set is not named or does not exist."""
    chosen: RawConfig = getattr(config, f"{part}_set")
    with of_set(part):
        open_source(chosen, config.storage)
    for key in ("path", "detections"):
        uri = getattr(chosen, key)
        if uri and chosen.kind != "synthetic" and not open_storage(uri, config.storage).exists():
            raise UserError(f"{part}_set.{key}={uri} does not exist")


@contextmanager
def of_set(part: str) -> Iterator[None]:
    """Context manager: a UserError names the pipeline's key of this set in place of the key `raw` of platform.ingest."""
    try:
        yield
    except UserError as error:
        text = renamed(str(error), IngestConfig, {"raw": f"{part}_set"}, ADVICE)
        error.args = (text if f"{part}_set." in text else f"{part}_set: {text}",)
        raise


def parts_of(config: PipelineConfig) -> list[str]:
    """The names of the sets that this pipeline reads, in the order of PARTS."""
    wanted = {"pretrain": True, "source": "uda" in config.settings, "target": is_given(config, "target")}
    return [part for part in PARTS if wanted[part]]
