"""Fine-tuning to a target set: supervised, UDA (labels of another set) or USL (no labels), then evaluation.

  python -m platform.finetune setting=supervised init=runs/first target=runs/demo/data/target output=runs/supervised
  python -m platform.finetune setting=usl init=runs/first target=s3://bucket/market output=s3://bucket/runs/usl
  python -m platform.finetune setting=uda init=runs/first source=runs/msmt target=runs/market output=runs/uda

init: a pre-training run, or a checkpoint file (ours or a released one); empty: random weights. What the file does not say is
stated, and given by load.*, e.g. load.heads=12. model.num_cameras=6 learns an embedding for each of the training set's 6 cameras
(TransReID's SIE); query and gallery must be from these.
UDA = supervised on the source's train split, then the unsupervised procedure on the target's. Running the same command
again continues after the last finished epoch. Results: model.safetensors, metrics.jsonl, rankings.json, summary.json.
"""

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist

from platform.engine import zero
from platform.engine.camera_plan import CameraPlan, plan_cameras
from platform.engine.checkpoints import CheckpointStore
from platform.engine.config import run_program, to_dataclass
from platform.engine.device import device
from platform.engine.epochs import PhaseTrainer, extract
from platform.engine.errors import UserError
from platform.engine.evaluation import EvaluateConfig, evaluate_features, require_splits
from platform.engine.images import ImageSet
from platform.engine.launch import launch, report_line
from platform.engine.models import REID, ChangesConfig, LoadConfig, LoadedModel, load_model
from platform.engine.phases import Phase, Unsupervised, UnsupervisedConfig
from platform.engine.runs import SUMMARY, Run, open_run
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.scaling import ScalingConfig
from platform.engine.storage import StorageConfig, open_storage
from platform.engine.supervised import Supervised, SupervisedConfig
from platform.engine.tracking import Tracker, TrackingConfig
from reidssl.augment.reid import ReidAugmentConfig
from reidssl.models.checkpoints import model_bytes, weights_hash
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit, VitConfig, build_vit

SETTINGS = ("supervised", "uda", "usl")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Everything a fine-tuning run depends on."""

    output: str = "runs/finetune"
    """Run folder, local or s3://."""
    setting: str = "supervised"
    """supervised, uda or usl."""
    init: str = ""
    """Pre-training run or checkpoint file to start from; empty: random weights."""
    source: str = ""
    """Labelled shards of the source set (uda only)."""
    target: str = "runs/demo/data/target"
    """Shards of the target set with splits train, query and gallery."""
    seed: int = 0
    """Seed of batches, augmentation, drop path and new layers."""
    evaluate_every: int = 0
    """Also evaluate every so many epochs; 0: at the end only."""
    model: VitConfig = field(default_factory=VitConfig)
    """Backbone for random weights. With init its own configuration counts, but for the image size (augment.image_size),
    `changes`, and num_cameras: above 0 (as many as the training images come from), new camera embeddings are learned."""
    load: LoadConfig = field(default_factory=LoadConfig)
    """Of init; its mean, std and neck are not used here."""
    changes: ChangesConfig = field(default_factory=ChangesConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    augment: ReidAugmentConfig = field(default_factory=ReidAugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    deepspeed: zero.DeepSpeedConfig = field(default_factory=lambda: zero.DeepSpeedConfig(clip=0.0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(f"setting must be one of {', '.join(SETTINGS)}: got '{self.setting}'")
        if self.setting == "uda" and not self.source:
            raise ValueError("source must name the labelled source set for setting=uda: got ''")
        if not self.init and tuple(self.augment.image_size) != tuple(self.model.image_size):
            raise ValueError(f"augment.image_size must equal model.image_size {tuple(self.model.image_size)}: "
                             f"got {tuple(self.augment.image_size)}")
        if self.deepspeed.zero_stage == 3:
            raise ValueError("deepspeed.zero_stage must be 0, 1 or 2: got 3. Fine-tuning evaluates and exports the model between "
                             "its phases, for which every worker holds it whole")
        if self.evaluate.tasks:
            raise ValueError("evaluate.tasks must be 0 in fine-tuning, whose workers rank by themselves: "
                             f"got {self.evaluate.tasks}")
        if not self.init and self.changes.as_dict():
            raise ValueError(f"changes are made to the backbone of init, which is empty: set {', '.join(self.changes.as_dict())} "
                             "of model instead")
        for name, own in (("mean", "augment.mean"), ("std", "augment.std"), ("neck", "supervised.neck or unsupervised.neck")):
            if getattr(self.load, name):
                raise ValueError(f"load.{name} must be empty in fine-tuning, which has its own: set {own}")
        if not self.init and self.load.as_dict():
            raise ValueError(f"load says what the file of init does not, and init is empty: got {self.load.as_dict()}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every must be 0 (end only) or more: got {self.evaluate_every}")


def main(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune, evaluate, return the summary; a complete run is only reported."""
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():
        check_inputs(config)  # first: a mistyped path must not become the configuration of the output folder
    run = open_run("finetune", config.output, config, config.storage)
    if run.summary:
        say(f"finetune: {run.location.uri} is complete already")
        return run.summary
    connect(config.runtime)
    say(f"finetune: {config.setting} from {config.init or 'random weights'} on {config.target}; output {run.location.uri}")
    launch(finetune, {"config": run.config}, name="ray_train", storage=run.location, scaling=config.scaling,
           micro_batches_per_step=shared_micro_batches(config))
    summary = run.summary
    if summary is None:
        raise UserError("fine-tuning ended without a summary; run the same command again to continue")
    say(f"finetune: {config.setting}  mAP {summary['mAP']:.1%}  Rank-1 {summary['rank1']:.1%}")
    return summary


def check_inputs(config: FinetuneConfig) -> None:
    """UserError for a wrong path, checkpoint or split here, not in a worker."""
    if config.setting == "uda":
        require_splits(open_storage(config.source, config.storage), ["train"])
    require_splits(open_storage(config.target, config.storage), ["train", "query", "gallery"])
    init = load_init(config)
    plan = plan_cameras(config, init)
    if init:
        about = init.about.without("mean", "std", "neck")
        say(f"finetune: {config.init}: {replace(init.report, about=about)}; images are normalised by augment.mean "
            f"{list(config.augment.mean)} and augment.std {list(config.augment.std)}")
    if plan:
        say(f"finetune: {plan}")


def shared_micro_batches(config: FinetuneConfig) -> int:
    """What the numbers of workers must divide: the micro-batches per step of every phase of the setting."""
    phases = {"supervised": [config.supervised], "usl": [config.unsupervised],
              "uda": [config.supervised, config.unsupervised]}[config.setting]
    return math.gcd(*(phase.batch.micro_batches_per_step for phase in phases))  # type: ignore[attr-defined]


def finetune(arguments: dict[str, Any]) -> None:
    """The whole run; every worker does it."""
    config = to_dataclass(FinetuneConfig, arguments["config"])
    run = Run(open_storage(config.output, config.storage), "finetune", arguments["config"])
    store = CheckpointStore(run.location / "checkpoints", keep=1)
    found = store.newest()
    if found and dist.get_rank() == 0:
        report_line(f"continuing after phase {found.payload['phase'] + 1}, epoch {found.payload['epoch']}")
    init = load_init(config)
    plan = plan_cameras(config, init)
    model = initial_model(config, init, plan)
    phases = phases_of(config, model.backbone, plan)
    tracker = Tracker(run.location, config.tracking, found.position if found else 0, run.location.uri) \
        if dist.get_rank() == 0 else None
    query, gallery = (image_set(config, config.target, split, model.backbone, plan) for split in ("query", "gallery"))

    def judge(phase: Phase) -> dict[str, Any]:
        of_query, of_gallery = (extract(model, images, phase.config.neck, config.augment) for images in (query, gallery))
        return evaluate_features(query, gallery, of_query, of_gallery, config.evaluate)

    trainer = PhaseTrainer(setting=config.setting, seed=config.seed, augment=config.augment, deepspeed=config.deepspeed,
                           evaluate_every=config.evaluate_every, store=store, tracker=tracker, judge=judge)
    for number, phase in enumerate(phases):
        model = model_for(phase, model)
        if not found or number >= found.payload["phase"]:
            trainer.train(model, phase, number, found)
    result = judge(phases[-1])
    if tracker:
        finish(run, config, model, phases[-1], tracker, result, record_of(init, plan))
    dist.barrier()


def initial_model(config: FinetuneConfig, init: LoadedModel | None, plan: CameraPlan | None) -> ReidModel:
    """Backbone from `init` (position embeddings resized to augment.image_size), or random; a fresh neck, fresh cameras."""
    if init is None:
        return ReidModel(build_vit(config.model, config.seed)).to(device())
    backbone = init.backbone
    if plan and plan.fresh:
        settings = replace(init.backbone.config, num_cameras=plan.rows, camera_weight=config.model.camera_weight)
        backbone = build_vit(settings, config.seed)
        kept = {name: value for name, value in init.backbone.state_dict().items() if name != "camera_embed"}
        backbone.load_state_dict(backbone.state_dict() | kept)
    return ReidModel(backbone).to(device())


def load_init(config: FinetuneConfig) -> LoadedModel | None:
    """The model of `init`; None without one."""
    if not config.init:
        return None
    return load_model(config.init, config.storage, config.load, image_size=config.augment.image_size,
                      **config.changes.as_dict())


def record_of(init: LoadedModel | None, plan: CameraPlan | None) -> dict[str, Any]:
    """What results say of init's file and of the cameras."""
    return {"checkpoint": init.about.as_dict() if init else None, "cameras": list(plan.target) if plan else None}


def model_for(phase: Phase, before: ReidModel) -> ReidModel:
    """The weights so far in new modules: the phase's own drop path, and no hooks of the engine of the phase before."""
    backbone = build_vit(replace(before.backbone.config, drop_path=phase.config.drop_path))
    backbone.load_state_dict(before.backbone.state_dict())
    model = ReidModel(backbone)
    model.bottleneck.load_state_dict(before.bottleneck.state_dict())
    phase.prepare(model)
    return model.to(device())


def phases_of(config: FinetuneConfig, backbone: Vit, plan: CameraPlan | None = None) -> list[Phase]:
    """Supervised, unsupervised, or one after the other."""
    phases: list[Phase] = []
    if config.setting != "usl":
        labelled = config.source if config.setting == "uda" else config.target
        phases.append(Supervised(config.supervised, image_set(config, labelled, "train", backbone, plan), config.seed))
    if config.setting != "supervised":
        images = image_set(config, config.target, "train", backbone, plan)
        phases.append(Unsupervised(config.unsupervised, images, config.seed))
    return phases


def image_set(config: FinetuneConfig, uri: str, split: str, backbone: Vit, plan: CameraPlan | None = None) -> ImageSet:
    images = ImageSet(open_storage(uri, config.storage), [split], backbone.config.image_size)
    if plan:
        images.camera_rows = plan.rows_for(uri, images.camids)
    return images


def finish(run: Run, config: FinetuneConfig, model: ReidModel, phase: Phase, tracker: Tracker, result: dict[str, Any],
           record: dict[str, Any]) -> None:
    """Publish the model, the rankings and the summary (which marks the run complete)."""
    metadata = {"mean": config.augment.mean, "std": config.augment.std, "neck": phase.config.neck,
                "setting": config.setting, "init": config.init, "target": config.target, "source": config.source}
    metadata |= {name: json.dumps(value) for name, value in record.items() if value is not None}
    (run.location / REID).write_bytes(model_bytes(model, metadata))
    (run.location / "rankings.json").write_json(result.pop("rankings"))
    clusters = [row["clusters"] for row in tracker.rows if "clusters" in row]
    tracker.publish()
    tracker.close()
    run.finish({"setting": config.setting, "init": config.init, "target": config.target, "source": config.source,
                "image_size": list(model.backbone.config.image_size), "seed": config.seed, "neck": phase.config.neck,
                "weights": weights_hash(model)[:12], "clusters": int(clusters[-1]) if clusters else None, **record, **result})


if __name__ == "__main__":
    run_program("finetune")
