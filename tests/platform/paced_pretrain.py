"""`python -m platform.pretrain` with a small model at the pace of a large one, so that failures happen in the middle of a run.

    python -m tests.platform.paced_pretrain data.uri=... output=...     # the same options

Only the stream is slowed down. All other code is that of the program.
"""

import time
from collections.abc import Iterator
from typing import Any

from platform.engine.config.program import run_program
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.stream.stream import stream

SECONDS_PER_MICRO_BATCH = 0.1


def paced(*arguments: Any) -> Iterator[dict[str, Any]]:
    for batch in stream(*arguments):
        time.sleep(SECONDS_PER_MICRO_BATCH)
        yield batch


def train(config: PretrainConfig) -> None:
    from platform.engine.pretrain.loop import train as train_of_program

    train_of_program(config, paced)


if __name__ == "__main__":
    import platform.pretrain as program

    program.LOOP = "tests.platform.paced_pretrain:train"
    run_program("pretrain")
