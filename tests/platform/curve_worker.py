"""One worker of test_curve.py: the training loop as Ray Train runs it, over gloo and without Ray.

    python -m tests.platform.curve_worker RANK FOLDER JSON

JSON: {"world", "data", "steps", "runs": [[name, stage, stop, *overrides], ...]}, with optional "overrides": [...] for all runs.

`stop`: break off in the middle of this step, like a crash (0: run to the end). Each run has a folder below the shared FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from platform.engine.config.compose import load_config
from platform.engine.pretrain.loop import train
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.stream.stream import local_stream
from tests.tiny import PRETRAIN

TINY = [
    *PRETRAIN,
    "model.stem=ics",
    "model.depth=2",  # the first block drops nothing
    "model.drop_path=0.2",
    "stream.micro_batch=4",
    "stream.micro_batches_per_step=4",
    "stream.window_row_groups=3",
    "optimizer.warmup_epochs=0.5",
    "optimizer.learning_rate=0.02",
    "tracking.every_steps=1",
    "checkpoint.every_steps=4",
]
BATCH = 16


class CrashError(Exception):
    """A stand-in for a killed process: nothing of the loop runs after it."""


def stream_until(stop: int):
    """The stream of a worker that crashes within optimizer step `stop`, counted from the start of the run."""

    def stream(plan, config, root, image_size, position, end, decode_resource):
        rank, world = dist.get_rank(), dist.get_world_size()
        own = local_stream(plan, config, root, image_size, position, end, rank, world)
        per_step = config.micro_batches_per_step // world
        for number, batch in enumerate(own):
            if stop and position // BATCH + number // per_step == stop:
                raise CrashError
            yield batch

    return stream


def join(rank: int, folder: Path, world: int) -> None:
    """Join the process group of the `world` workers that one test process has started for the same work."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/{os.environ['RENDEZVOUS']}", rank=rank, world_size=world)


def main(rank: int, folder: Path, order: dict) -> None:
    join(rank, folder, order["world"])
    for name, stage, stop, *own in order["runs"]:
        config = load_config(
            PretrainConfig,
            "pretrain",
            [
                f"data.uri={order['data']}",
                f"output={folder / name}",
                f"deepspeed.zero_stage={stage}",
                f"length.samples={order['steps'] * BATCH}",
                f"tracking.audit={folder / name / 'audit'}",
                *TINY,
                *order.get("overrides", []),
                *own,
            ],
        )
        try:
            train(config, stream_until(stop))
        except CrashError:
            assert stop
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
