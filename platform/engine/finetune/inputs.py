"""The checks of a fine-tuning run before its workers start, and the parts into which its batches are cut."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.finetune.camera_plan import plan_cameras
from platform.engine.finetune.fraction import chosen_images
from platform.engine.finetune.start import load_init
from platform.engine.finetune.supervised import check_identities
from platform.engine.inference.evaluation import require_judgeable, require_splits
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import CONFIG
from platform.engine.runtime.terminal import say
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.phases_settings import SupervisedConfig, UnsupervisedConfig
from platform.engine.storage.location import Location, open_storage
from reidssl.models.model_config import VitConfig


def check_inputs(config: FinetuneConfig) -> dict[str, str]:
    """Check paths, checkpoint, splits and labels before any worker starts. Returns checksums of all inputs. Raises UserError."""
    check_target(config)
    check_labels(config)
    check_clusters(config)
    init = load_init(config)
    check_phases(config, init.backbone.config if init else config.model)
    plan = plan_cameras(config, init)
    if config.train_sets and plan:
        raise UserError(
            f"{config.checkpoint} has embeddings of cameras, which are those of one data set: train_sets must be empty, got "
            f"{config.train_sets}"
        )
    if init:
        about = init.about.without("mean", "std", "neck")
        say(
            f"finetune: {config.checkpoint}: {replace(init.report, about=about)}; images are normalized by augment.mean "
            f"{list(config.augment.mean)} and augment.std {list(config.augment.std)}"
        )
    if plan:
        say(f"finetune: {plan}")
    sets = {"target_set": config.target_set} | ({"source_set": config.source_set} if config.setting == "uda" else {})
    sets |= {f"train_sets[{place}]": uri for place, uri in enumerate(config.train_sets)}
    checksums = {name: read_manifest(open_storage(uri, config.storage)).checksum for name, uri in sets.items()}
    check_distinct(checksums)
    return checksums | {"weights": init.weights if init else "random"}


def check_distinct(checksums: Mapping[str, str]) -> None:
    """Check that no data set is given twice, under whatever path. checksums: key -> checksum. Raises UserError."""
    names: dict[str, str] = {}
    for name, checksum in checksums.items():
        if checksum in names:
            raise UserError(
                f"{names[checksum]} and {name} are the same data set (checksum {checksum[:12]}): its images would be trained on "
                "twice, as different people, or with the labels that uda must not see. Name each data set once"
            )
        names[checksum] = name


def check_target(config: FinetuneConfig) -> None:
    """Check that the target set has training images and that its test images can be judged. Raises UserError."""
    target = open_storage(config.target_set, config.storage)
    require_splits(target, ["train"])
    require_judgeable(target)


def check_labels(config: FinetuneConfig) -> None:
    """Check that the images of the supervised phase, if there is one, have the labels that it needs. Raises UserError."""
    if config.setting == "usl":
        return
    uri = config.source_set if config.setting == "uda" else config.target_set
    check_identities(uri, train_pids(config, uri), config.supervised.batch)
    for further in config.train_sets:
        check_identities(further, train_pids(config, further), None)


def check_clusters(config: FinetuneConfig) -> None:
    """Check that the unsupervised phase, if there is one, has an image for each cluster of kmeans. Raises UserError."""
    wanted = config.unsupervised.cluster.num_clusters
    if config.setting == "supervised" or config.unsupervised.cluster.algorithm != "kmeans":
        return
    images = len(train_pids(config, config.target_set))
    if wanted > images:
        raise UserError(
            f"unsupervised.cluster.num_clusters must be at most {images:,}, the number of training images of "
            f"{config.target_set}: got {wanted:,}"
        )


def train_pids(config: FinetuneConfig, uri: str) -> np.ndarray:
    """Identities, int (N,), of the training images of a data set; of the target, of the part that train_fraction keeps."""
    location = open_storage(uri, config.storage)
    require_splits(location, ["train"])
    pids = read_rows(location, ["pid"], split="train")["pid"].to_numpy()
    return pids[chosen_images(pids, config.train_fraction, config.seed)] if uri == config.target_set else pids


def check_phases(config: FinetuneConfig, vit: VitConfig) -> None:
    """Check that the phases fit the backbone: the layers that they freeze, and the local features. Raises UserError."""
    for name, section in phase_sections(config).items():
        if section.freeze_layers > vit.depth + 1:
            raise UserError(
                f"{name}.freeze_layers must be at most {vit.depth + 1}, the {vit.depth} blocks and the patch embedding: got "
                f"{section.freeze_layers}"
            )
    try:
        config.supervised.jigsaw.check(math.prod(vit.grid(*vit.image_size)))
    except ValueError as error:
        raise UserError(f"supervised.jigsaw.{error}") from None


def phase_sections(config: FinetuneConfig) -> dict[str, SupervisedConfig | UnsupervisedConfig]:
    """Configuration key -> configuration of each phase of the setting, in the order of training."""
    found: dict[str, SupervisedConfig | UnsupervisedConfig] = {}
    if config.setting != "usl":
        found["supervised"] = config.supervised
    if config.setting != "supervised":
        found["unsupervised"] = config.unsupervised
    return found


def with_micro_batches(config: FinetuneConfig, output: Location) -> FinetuneConfig:
    """`config` with every `micro_batches` of 0 replaced by a number that the workers can share.

    It is the number that the run in `output` began with, else the least common multiple of its largest and smallest number of
    workers.

    A run keeps its number of micro-batches: the batch norm of an ics stem sees one micro-batch, so another number would give
    other results. Raises UserError if there are more workers than images in a batch.
    """
    begun: dict[str, Any] = {}
    if (output / CONFIG).exists():
        begun = read_record(output / CONFIG, "config", dict, "that folder is not a run of this program; choose another output")
    resolved: dict[str, Any] = {}
    for name, section in phase_sections(config).items():
        batch, stored = section.batch, begun.get("config")
        for key in (name, "batch", "micro_batches"):
            stored = stored.get(key) if isinstance(stored, dict) else None
        pieces = batch.micro_batches or stored or math.lcm(config.scaling.workers, config.scaling.fewest)
        if pieces > batch.images:
            raise UserError(
                f"{config.scaling.workers} workers cannot share the {batch.images} images of a step: lower "
                f"scaling.workers, or raise {name}.batch.identities"
            )
        resolved[name] = replace(section, batch=replace(batch, micro_batches=pieces))
    return replace(config, **resolved)


def shared_micro_batches(config: FinetuneConfig) -> int:
    """Greatest common divisor of the micro-batches per step of all phases; the number of workers must divide it."""
    return math.gcd(*(section.batch.micro_batches for section in phase_sections(config).values()))
