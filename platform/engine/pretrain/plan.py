"""The order and the number of the samples of a run, known before any worker starts."""

import math

from platform.engine.errors import UserError
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
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
