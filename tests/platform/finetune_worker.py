"""One worker of test_finetune_curve.py: fine-tuning as Ray Train runs it, over gloo and without Ray.

python -m tests.platform.finetune_worker RANK FOLDER JSON    # JSON: {"world", "data", "runs": [[name, [override, ...]], ...]}
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from platform.engine.config.compose import load_config
from platform.engine.storage.location import open_storage
from platform.finetune import FinetuneConfig, finetune, with_micro_batches
from tests.platform.curve_worker import join
from tests.tiny import FINETUNE


def main(rank: int, folder: Path, order: dict) -> None:
    join(rank, folder, order["world"])
    for name, overrides in order["runs"]:
        config = load_config(
            FinetuneConfig,
            "finetune",
            [
                f"target_set={order['data']}",
                f"output={folder / name}",
                f"scaling.workers={order['world']}",
                *FINETUNE,
                *overrides,
            ],
        )
        finetune(with_micro_batches(config, open_storage(config.output, config.storage)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
