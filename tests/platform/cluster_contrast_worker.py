"""One run of test_trajectory.py: the platform's fine-tuning without labels, and the plain one on the same batches.

    python -m tests.platform.cluster_contrast_worker 0 FOLDER JSON

JSON: {"data", "overrides"}. The run is watched, not changed: its initial weights, its batches and its losses are copied. Writes
trajectory.json: losses and labels of both, and the largest difference of the final weights.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from platform.engine.config.compose import load_config
from platform.engine.data.image_set import ImageSet
from platform.engine.finetune.loop import PhaseTrainer
from platform.engine.finetune.phase import Unsupervised
from platform.engine.finetune.trained import Trained
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.storage.location import StorageConfig, open_storage
from platform.finetune import finetune, with_micro_batches
from reidssl.augment.reid_augment import normalize
from reidssl.models.weight_files import ModelFile, read_content
from tests.platform.curve_worker import join
from tests.platform.plain_cluster_contrast import PlainRun, Recipe
from tests.reidssl.models.plain_vit import plain_vit


class Watch:
    """Copies what the platform's run computes."""

    def __init__(self) -> None:
        self.initial: dict[str, torch.Tensor] = {}
        self.trained: set[str] = set()
        self.model: Any = None
        self.batches: dict[int, list[tuple[np.ndarray, torch.Tensor]]] = {}
        self.seconds: dict[int, list[torch.Tensor]] = {}
        self.labels: list[np.ndarray] = []
        self.losses: list[float] = []
        train, inputs, begin, loss = PhaseTrainer.train, Trained.inputs, Unsupervised.begin, Unsupervised.loss

        def watched_train(trainer: Any, model: Any, *given: Any) -> Any:
            self.model = model.backbone.config
            self.initial = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.trained = {name for name, value in model.named_parameters() if value.requires_grad}
            return train(trainer, model, *given)

        def watched_inputs(trained: Any, seed: int, epoch: int, step: int, positions: Any, rows: Any, view: str = "") -> Any:
            found = inputs(trained, seed, epoch, step, positions, rows, view)
            images = found[0].clone()
            if view:
                self.seconds.setdefault(epoch, []).append(images)
            else:
                self.batches.setdefault(epoch, []).append((positions, images))
            return found

        def watched_begin(phase: Any, *given: Any) -> Any:
            found = begin(phase, *given)
            self.labels.append(found.labels)
            return found

        def watched_loss(phase: Any, *given: Any) -> Any:
            found = loss(phase, *given)
            self.losses.append(float(found[0].detach()))
            return found

        PhaseTrainer.train, Trained.inputs = watched_train, watched_inputs  # type: ignore[method-assign]
        Unsupervised.begin, Unsupervised.loss = watched_begin, watched_loss  # type: ignore[method-assign]


def largest_difference(found: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all values of the tensors of real numbers in `found`."""
    return max(float((value - other[name]).abs().max()) for name, value in found.items() if value.is_floating_point())


def main(folder: Path, order: dict) -> None:
    join(0, folder, 1)
    run = open_storage(str(folder / "run"), StorageConfig())
    config = load_config(FinetuneConfig, "finetune", [f"target_set={order['data']}", f"output={run.uri}", *order["overrides"]])
    watch = Watch()
    finetune(with_micro_batches(config, run))

    phase = config.unsupervised
    recipe = Recipe(
        phase.learning_rate, phase.decay_epochs, phase.weight_decay, phase.temperature, phase.momentum,
        phase.cluster.k1, phase.cluster.k2, phase.cluster.eps, phase.cluster.min_samples,
        phase.ema_momentum, phase.teacher_weight,
    )  # fmt: skip
    plain = PlainRun(
        {name: value for name, value in watch.initial.items() if not name.startswith("classifier")},
        {name for name in watch.trained if not name.startswith("classifier")},
        recipe,
        lambda state, images: plain_vit(state, images, watch.model),
    )
    images = ImageSet(open_storage(order["data"], StorageConfig()), ["train"], watch.model.image_size)
    everything = normalize(images.batch(np.arange(len(images))), config.augment.mean, config.augment.std)
    for epoch, batches in watch.batches.items():
        plain.epoch(epoch, everything, batches, watch.seconds.get(epoch, []))
    final = plain.final()
    file = run / "model.safetensors"
    found = read_content(ModelFile(file.read_bytes(), file.uri))
    result = {
        "ours": watch.losses,
        "plain": plain.losses,
        "same_labels": [bool(np.array_equal(*pair)) for pair in zip(watch.labels, plain.labels, strict=True)],
        "clusters": [int(labels.max()) + 1 for labels in plain.labels],
        "difference": max(float((found[name] - value).abs().max()) for name, value in final.items() if value.is_floating_point()),
        "moved": max(float((found[name] - watch.initial[name]).abs().max()) for name in plain.state),
    }
    (folder / "trajectory.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[2]), json.loads(sys.argv[3]))
