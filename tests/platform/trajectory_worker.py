"""One run of test_trajectory.py: the platform's pre-training loop, and the plain one on the same crops.

    python -m tests.platform.trajectory_worker 0 FOLDER JSON

JSON: {"data", "overrides"}. Writes trajectory.json: the losses of both, and the largest difference of the teachers' weights.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from platform.engine.config.compose import load_config
from platform.engine.pretrain.loop import train
from platform.engine.pretrain.plan import plan_of
from platform.engine.runs.metrics import read_metrics
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.stream.order import stream_seeds
from platform.engine.stream.stream import local_stream
from reidssl.augment.multicrop import MultiCrop
from reidssl.models.weight_files import ModelFile, read_content
from reidssl.objectives import build_objective
from tests.platform import plain_dino
from tests.platform.curve_worker import join
from tests.reidssl.models.plain_vit import plain_vit


def recipe_of(config: PretrainConfig, samples_per_epoch: int, total: int) -> plain_dino.Recipe:
    batch, optimizer, dino = config.stream.global_batch, config.optimizer, config.objective.dino
    assert samples_per_epoch % batch == 0 == total % samples_per_epoch  # the released loop counts in whole epochs
    return plain_dino.Recipe(
        epochs=total // samples_per_epoch,
        steps_per_epoch=samples_per_epoch // batch,
        rate=optimizer.learning_rate * batch / 256,
        rate_final=optimizer.learning_rate_final,
        warmup_epochs=int(optimizer.warmup_epochs),
        decay=optimizer.weight_decay,
        decay_final=optimizer.weight_decay_final,
        momentum=dino.teacher_momentum,
        clip=config.clip.norm,
        freeze_epochs=int(dino.freeze_last_layer_epochs),
        student_temperature=dino.student_temperature,
        warmup_temperature=dino.warmup_teacher_temperature,
        temperature=dino.teacher_temperature,
        temperature_epochs=int(dino.warmup_teacher_temperature_epochs),
        center_momentum=dino.center_momentum,
    )


def main(folder: Path, order: dict) -> None:
    join(0, folder, 1)
    run = open_storage(str(folder / "run"), StorageConfig())
    config = load_config(PretrainConfig, "pretrain", [f"data.uri={order['data']}", f"output={run.uri}", *order["overrides"]])
    plan, total = plan_of(config)
    train(config, lambda *given: local_stream(*given[:6]))
    ours = [row["loss"] for row in read_metrics(run)]

    crop, root = MultiCrop(config.augment), open_storage(config.data.uri, config.storage)
    steps = (
        crop(torch.from_numpy(batch["image"]), stream_seeds(config.seed, batch["epoch"], batch["key"]), batch["shape"])
        for batch in local_stream(plan, config.stream, root, tuple(config.stream.decode_size), 0, total)
    )
    student = build_objective(config.model, config.objective, config.seed).student
    losses, teacher = plain_dino.train(
        {name: value.detach() for name, value in student.state_dict().items()},
        {name for name, _ in student.named_parameters()},
        recipe_of(config, plan.samples_per_epoch, total),
        steps,
        lambda state, images: plain_vit(state, images, config.model, training=True),
    )
    file = run / "backbone.safetensors"
    found = read_content(ModelFile(file.read_bytes(), file.uri))
    trained = [name for name, _ in student.backbone.named_parameters()]
    differences = {name: float((found[name] - teacher[f"backbone.{name}"]).abs().max()) for name in trained}
    moved = max(float((found[name] - student.backbone.state_dict()[name]).abs().max()) for name in trained)
    result = {"ours": ours, "plain": losses, "differences": differences, "moved": moved}
    (folder / "trajectory.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[2]), json.loads(sys.argv[3]))
