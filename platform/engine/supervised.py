"""The phase of fine-tuning with identity labels."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from platform.engine.device import device
from platform.engine.errors import UserError
from platform.engine.images import ImageSet
from platform.engine.phases import BatchConfig, Epoch, Features, check_common
from reidssl.data.samplers import identity_batches
from reidssl.losses.center import CenterLoss
from reidssl.losses.identity import identity_loss
from reidssl.losses.margin import LARGEST_MARGIN, MARGIN_LOSSES
from reidssl.losses.triplet import triplet_loss
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.schedules import ReidCosine

IDENTITY_LOSSES = ("cross_entropy", *MARGIN_LOSSES)


@dataclass(kw_only=True)
class SupervisedConfig:
    """Fine-tuning with identity labels (TransReID-SSL, section 4): identity + soft-margin batch-hard triplet loss.

    The other losses are options; the defaults are the published recipe.
    """

    epochs: int = 120
    """Passes over the identities."""
    optimizer: str = "sgd"
    """sgd (momentum 0.9, biases twice the rate) or adamw."""
    learning_rate: float = 4e-4
    """Peak learning rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it; 1: all alike; 0.65 to 0.9 are usual."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    identity: str = "cross_entropy"
    """Identity loss: cross_entropy of a linear classifier, or of cosines with a margin: arcface, cosface, circle."""
    identity_scale: float = 30.0
    """Scale of the cosines (margin losses only); 30 to 64, for circle 64 to 256."""
    identity_margin: float = 0.3
    """Margin (margin losses only): radians for arcface, a cosine for cosface and circle (for circle less is stricter)."""
    label_smoothing: float = 0.0
    """Of the identity loss."""
    triplet_weight: float = 1.0
    """Of the triplet loss; 0 leaves it out, for models too small to satisfy it (it stays at ln 2 and only disturbs)."""
    triplet_margin: float = 0.0
    """Margin of the triplet loss; 0: the soft margin."""
    center_weight: float = 0.0
    """Of the center loss on the feature before the neck; 5e-4 is usual, 0 leaves it out."""
    center_rate: float = 0.5
    """How far a centre moves towards its features in a step."""
    drop_path: float = 0.1
    """Stochastic depth rate of the backbone."""
    neck: str = "before"
    """Side of the neck whose feature is used for retrieval."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        check_common(self)
        if self.identity not in IDENTITY_LOSSES:
            raise ValueError(f"identity must be one of {', '.join(IDENTITY_LOSSES)}: got '{self.identity}'")
        if self.identity_scale <= 0:
            raise ValueError(f"identity_scale must be positive: got {self.identity_scale}")
        limit = LARGEST_MARGIN.get(self.identity, float("inf"))
        if not 0.0 <= self.identity_margin < limit:
            raise ValueError(f"identity_margin must be in [0, {limit:.4g}) for {self.identity}: got {self.identity_margin}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1): got {self.label_smoothing}")
        for name in ("warmup_epochs", "triplet_weight", "triplet_margin", "center_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more: got {getattr(self, name)}")
        if not 0.0 <= self.center_rate <= 1.0:
            raise ValueError(f"center_rate must be in [0, 1]: got {self.center_rate}")


def check_identities(uri: str, pids: np.ndarray, batch: BatchConfig) -> None:
    """UserError unless the images of a train split, pids int (N,), can fill a batch. `uri`: of the data set."""
    unlabelled, identities = int((pids < 0).sum()), len(np.unique(pids[pids >= 0]))
    if unlabelled:
        raise UserError(f"{uri} has unlabelled images in split train: {unlabelled:,} of {len(pids):,}, and supervised "
                        "fine-tuning needs identities; use setting=usl")
    if identities < batch.identities:
        raise UserError(f"{uri} has {identities} {'person' if identities == 1 else 'people'} in split train, a batch needs "
                        f"{batch.identities}: lower supervised.batch.identities")


class Supervised:
    """Identity, triplet and center loss on labelled images."""

    name = "supervised"
    centers: CenterLoss | None = None

    def __init__(self, config: SupervisedConfig, images: ImageSet, seed: int) -> None:
        self.config, self.images, self.seed = config, images, seed
        check_identities(images.location.uri, images.pids, config.batch)
        identities, self.classes = np.unique(images.pids, return_inverse=True)
        self.num_classes = len(identities)
        floor = 0.002 * config.learning_rate
        self.schedule = ReidCosine(config.learning_rate, floor, max(config.epochs, 1),
                                   min(config.warmup_epochs, config.epochs))

    def prepare(self, model: ReidModel) -> None:
        model.reset_classifier(self.num_classes, self.seed, cosine=self.config.identity in MARGIN_LOSSES)
        if self.config.center_weight:
            width = model.backbone.config.width
            self.centers = CenterLoss(self.num_classes, width, self.config.center_rate).to(device())

    def learning_rate(self, epoch: int) -> float:
        return self.schedule(epoch)

    def begin(self, epoch: int, features: Features) -> Epoch:
        batch = self.config.batch
        batches = identity_batches(self.classes, None, batch.identities, batch.instances, self.seed, epoch)
        return Epoch(batches, self.classes, {})

    def loss(self, output: ReidOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert output.logits is not None
        config, logits, before = self.config, output.logits.float(), output.before.float()
        if config.identity in MARGIN_LOSSES:
            loss = MARGIN_LOSSES[config.identity](logits, labels, config.identity_scale, config.identity_margin,
                                                  config.label_smoothing)
        else:
            loss = identity_loss(logits, labels, config.label_smoothing)
        terms = {"identity": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
        if config.triplet_weight:
            terms["triplet"] = triplet_loss(before, labels, config.triplet_margin or None)
            loss = loss + config.triplet_weight * terms["triplet"]
        if self.centers is not None:
            terms["center"] = self.centers(before, labels)
            loss = loss + config.center_weight * terms["center"]
        return loss, terms

    def remembered(self, output: ReidOutput) -> Tensor | None:
        return None if self.centers is None else output.before

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        if self.centers is not None:
            self.centers.update(features, labels)

    def state_tensors(self) -> dict[str, Tensor]:
        return {} if self.centers is None else dict(self.centers.state_dict())

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        if self.centers is not None:
            self.centers.load_state_tensors(tensors)
