"""What is known of a run before any worker starts: the order and the number of its samples, and that its probe set is usable."""

import math

from platform.engine.data.people import people
from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.schemas.training_settings import ProbeConfig
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.stream.order import StreamPlan
from platform.engine.stream.units import read_units


def plan_of(config: PretrainConfig) -> tuple[StreamPlan, int]:
    """(order of all samples, number of samples that the run sees). The number is a multiple of the global batch.

    Raises UserError if the run is shorter than one global batch, or the selection cannot be used.
    """
    root = open_storage(config.data.uri, config.storage)
    units = read_units(root, open_storage(config.data.selection, config.storage) if config.data.selection else None)
    images = sum(unit.num_rows for unit in units)
    wanted = config.length.samples or round(config.length.epochs * images)
    total = wanted // config.stream.global_batch * config.stream.global_batch
    if total == 0:
        raise UserError(
            f"{wanted} samples are fewer than one global batch of {config.stream.global_batch}: train longer, "
            "ingest more images, or lower stream.micro_batch or stream.micro_batches_per_step"
        )
    plan = StreamPlan(tuple(units), config.seed, config.stream.window_row_groups, math.ceil(total / images))
    return plan, total


def check_probe(config: ProbeConfig, storage: StorageConfig) -> None:
    """Check the labels of the probe set, if there is one. Reads no images.

    Raises UserError if the split has no images or none of a known person, StorageError if there is no data set.
    """
    if not config.uri:
        return
    root = open_storage(config.uri, storage)
    manifest = read_manifest(root)
    advice = "Choose another probe.uri or probe.split, or probe.uri= for no probe"
    if not manifest.splits.get(config.split):
        raise UserError(
            f"the probe set {root.uri} has no images of split '{config.split}'; its splits are "
            f"{', '.join(manifest.splits) or 'none'}. {advice}"
        )
    pids = read_rows(root, ["pid"], split=config.split)["pid"].to_numpy()
    if people(manifest, pids, [config.split] * len(pids)).max() < 0:
        raise UserError(
            f"the probe set {root.uri} has no labels: none of the {len(pids):,} images of split '{config.split}' has an "
            f"identity (pid). {advice}"
        )
