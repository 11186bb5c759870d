"""The model, the phases and the images that a fine-tuning run starts with."""

from dataclasses import replace
from typing import Any

from platform.engine.data.image_set import ImageSet
from platform.engine.data.joined import JoinedImages
from platform.engine.finetune.camera_plan import CameraPlan
from platform.engine.finetune.fraction import chosen_images
from platform.engine.finetune.phase import Phase, Unsupervised
from platform.engine.finetune.supervised import Supervised
from platform.engine.inference.models import LoadedModel, load_model
from platform.engine.runtime.device import device
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.storage.location import open_storage
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit, build_vit
from reidssl.optim import layer_of


def initial_model(config: FinetuneConfig, init: LoadedModel | None, plan: CameraPlan | None) -> ReidModel:
    """The model at the start: the backbone of `init`, or random weights if it is None; a new neck.

    If the plan asks for new camera embeddings, they are initialized from config.seed; all other weights of `init` are kept.
    """
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
    """The model in `config.checkpoint`, with position embeddings resized to augment.image_size; None without a checkpoint.

    Raises UserError if it cannot be loaded.
    """
    if not config.checkpoint:
        return None
    return load_model(
        config.checkpoint, config.storage, config.load, image_size=config.augment.image_size, **config.overrides.as_dict()
    )


def record_of(init: LoadedModel | None, plan: CameraPlan | None) -> dict[str, Any]:
    """Facts about the loaded file and the cameras, for the summary."""
    return {"loaded": init.about.as_dict() if init else None, "cameras": list(plan.target) if plan else None}


def model_for(phase: Phase, before: ReidModel) -> ReidModel:
    """A new model with the backbone of `before`: with the drop path of this phase, and without hooks of the previous engine.

    The neck is new, as in the released UDA: its statistics are those of the features that the phase before it saw.
    """
    backbone = build_vit(replace(before.backbone.config, drop_path=phase.config.drop_path))
    backbone.load_state_dict(before.backbone.state_dict())
    model = ReidModel(backbone)
    phase.prepare(model)
    freeze_layers(model, phase.config.freeze_layers)
    return model.to(device())


def freeze_layers(model: ReidModel, number: int) -> None:
    """Stop training the first `number` layers of the backbone; new camera embeddings are trained all the same."""
    for name, parameter in model.backbone.named_parameters():
        if layer_of(name, model.backbone.config.depth) < number and "camera_embed" not in name:
            parameter.requires_grad_(False)


def phases_of(config: FinetuneConfig, backbone: Vit, plan: CameraPlan | None = None) -> list[Phase]:
    """The phases of the setting, in order: supervised, unsupervised, or both (uda)."""
    phases: list[Phase] = []
    if config.setting != "usl":
        labeled = config.source_set if config.setting == "uda" else config.target_set
        own = train_set(config, labeled, backbone, plan)
        further = [image_set(config, uri, "train", backbone) for uri in config.train_sets]
        phases.append(Supervised(config.supervised, JoinedImages([own, *further]) if further else own, config.seed))
    if config.setting != "supervised":
        images = train_set(config, config.target_set, backbone, plan)
        phases.append(Unsupervised(config.unsupervised, images, config.seed))
    return phases


def train_set(config: FinetuneConfig, uri: str, backbone: Vit, plan: CameraPlan | None = None) -> ImageSet:
    """The training images of a data set; of the target, the part that config.train_fraction keeps."""
    images = image_set(config, uri, "train", backbone, plan)
    if uri == config.target_set and config.train_fraction < 1:
        images.keep(chosen_images(images.pids, config.train_fraction, config.seed))
    return images


def image_set(config: FinetuneConfig, uri: str, split: str, backbone: Vit, plan: CameraPlan | None = None) -> ImageSet:
    """The images of a split, at the image size of the backbone, with camera rows if there is a plan."""
    images = ImageSet(
        open_storage(uri, config.storage),
        [split],
        backbone.config.image_size,
        max_corrupt_share=config.max_corrupt_share,
        resize="bicubic" if split == "train" else config.evaluate.resize,
    )
    if plan:
        images.camera_rows = plan.rows_for(uri, images.camids)
    return images
