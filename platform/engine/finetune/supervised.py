"""The supervised phase of fine-tuning, with identity labels."""

import numpy as np
from torch import Tensor

from platform.engine.data.joined import Images
from platform.engine.errors import UserError
from platform.engine.finetune.phase import Epoch, Features
from platform.engine.runtime.device import device
from platform.engine.schemas.phases_settings import BatchConfig, SupervisedConfig
from reidssl.data.samplers import identity_batches
from reidssl.losses.center import CenterLoss
from reidssl.losses.identity import identity_loss
from reidssl.losses.margin import MARGIN_LOSSES
from reidssl.losses.triplet import triplet_loss
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.schedules import ReidCosine


def check_identities(uri: str, pids: np.ndarray, batch: BatchConfig | None) -> None:
    """Check that a train split is labeled and has enough identities for a batch (None: any number). Raises UserError.

    uri: of the data set, for messages; pids: int (N,), -1 for unlabeled images.
    """
    unlabeled, identities = int((pids < 0).sum()), len(np.unique(pids[pids >= 0]))
    if unlabeled:
        raise UserError(
            f"{uri} has unlabeled images in split train: {unlabeled:,} of {len(pids):,}, and supervised "
            "fine-tuning needs identities; use setting=usl"
        )
    if batch and identities < batch.identities:
        raise UserError(
            f"{uri} has {identities} {'person' if identities == 1 else 'people'} in split train, a batch needs "
            f"{batch.identities}: lower supervised.batch.identities"
        )


class Supervised:
    """The supervised phase: identity, triplet and center loss on labeled images."""

    name = "supervised"
    teacher_clusters, teacher_weight = False, 0.0
    centers: CenterLoss | None = None

    def __init__(self, config: SupervisedConfig, images: Images, seed: int) -> None:
        self.config, self.images, self.seed = config, images, seed
        check_identities(images.location.uri, images.pids, config.batch)
        identities, self.classes = np.unique(images.pids, return_inverse=True)
        self.num_classes = len(identities)
        self.schedule = ReidCosine(config.learning_rate, max(config.epochs, 1), min(config.warmup_epochs, config.epochs))

    def prepare(self, model: ReidModel) -> None:
        if self.config.jigsaw.parts:
            model.add_jigsaw(self.config.jigsaw)
        model.reset_classifier(self.num_classes, self.seed, cosine=self.config.identity in MARGIN_LOSSES)
        if self.config.center_weight:
            width = model.backbone.config.width
            self.centers = CenterLoss(self.num_classes, width, self.config.center_rate).to(device())

    def learning_rate(self, epoch: int, factor: float = 1.0) -> float:
        return self.schedule(epoch, factor)

    def begin(self, epoch: int, features: Features) -> Epoch:
        batch = self.config.batch
        batches = identity_batches(self.classes, None, batch.identities, batch.instances, self.seed, epoch)
        return Epoch(batches, self.classes, {})

    def loss(self, output: ReidOutput, labels: Tensor, teacher: ReidOutput | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a step. With local parts, identity and triplet loss are half that of the whole image, half the parts' mean.

        The weights of whole and parts are those of TransReID's released code. The center loss is that of the whole image.
        """
        assert output.logits is not None
        found = self._terms(output, labels)
        if output.parts:
            local = [self._terms(part, labels) for part in output.parts]
            found = {name: (value + sum(each[name] for each in local) / len(local)) / 2 for name, value in found.items()}
        loss = found["identity"]
        terms = {"identity": loss, "accuracy": (output.logits.argmax(1) == labels).float().mean()}
        if self.config.triplet_weight:
            terms["triplet"] = found["triplet"]
            loss = loss + self.config.triplet_weight * terms["triplet"]
        if self.centers is not None:
            terms["center"] = self.centers(output.before.float(), labels)
            loss = loss + self.config.center_weight * terms["center"]
        return loss, terms

    def _terms(self, output: ReidOutput, labels: Tensor) -> dict[str, Tensor]:
        """Identity and triplet loss of one feature, whole or local."""
        assert output.logits is not None
        config, logits = self.config, output.logits.float()
        if config.identity in MARGIN_LOSSES:
            loss = MARGIN_LOSSES[config.identity](
                logits, labels, config.identity_scale, config.identity_margin, config.label_smoothing
            )
        else:
            loss = identity_loss(logits, labels, config.label_smoothing)
        terms = {"identity": loss}
        if config.triplet_weight:
            terms["triplet"] = triplet_loss(output.before.float(), labels, config.triplet_margin or None)
        return terms

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
