"""Settings of the phases of fine-tuning."""

from dataclasses import dataclass, field
from typing import Any

from platform.engine.schemas.retrieval_settings import NeighborActorsConfig, check_shared
from reidssl.checks import at_least, one_of, positive, within
from reidssl.choices import LARGEST_MARGIN, NECKS
from reidssl.clustering.cluster_config import ClusterConfig

IDENTITY_LOSSES = ("cross_entropy", *LARGEST_MARGIN)
PHASE_OPTIMIZERS = ("sgd", "adamw")


@dataclass(kw_only=True)
class BackboneOverrides:
    """What may differ from the configuration that a checkpoint's backbone was trained with, its weights staying the same."""

    stride: int = 0
    """Distance between patches in pixels, smaller makes them overlap (TransReID trains with 12); 0: as it was."""
    gem_pooling: bool = False
    """Add the generalized mean of the patch tokens to the class token."""

    def as_dict(self) -> dict[str, Any]:
        """The changes, without what stays as it was."""
        return {name: value for name, value in (("stride", self.stride), ("gem_pooling", self.gem_pooling)) if value}


@dataclass(kw_only=True)
class BatchConfig:
    """The batch of one optimizer step, P identities with K images each, however many workers share it."""

    identities: int = 16
    """P."""
    instances: int = 4
    """K."""
    micro_batches: int = 0
    """Pieces of equal size in which the step's images go through the backbone; the number of workers must divide it. 0: one for
    each of scaling.workers, kept for the whole run. Losses, mining, the neck's batch norm and the cluster memory see the whole
    batch however it is cut; the batch norm of an ics stem sees a piece. More pieces than workers need less memory and about a
    third more time: their images go through the backbone once more, without gradients."""

    def __post_init__(self) -> None:
        at_least(1, identities=self.identities, instances=self.instances)
        if not 0 <= self.micro_batches <= self.images:
            raise ValueError(
                f"micro_batches must be between 0 (as many as workers) and the {self.images} images of a batch: "
                f"got {self.micro_batches}"
            )

    @property
    def images(self) -> int:
        """P x K."""
        return self.identities * self.instances


@dataclass(kw_only=True)
class PhaseConfig:
    """What every phase has: its length, its optimizer, its model and its batch. Each phase gives the defaults."""

    epochs: int
    """Number of epochs."""
    optimizer: str = "sgd"
    """sgd (momentum 0.9, biases twice the rate) or adamw."""
    learning_rate: float
    """Largest learning rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it; 1: all alike; 0.65 to 0.9 are usual."""
    weight_decay: float
    """Weight decay."""
    drop_path: float
    """Stochastic depth rate of the backbone."""
    neck: str
    """Side of the neck whose feature is used for retrieval: before or after."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        at_least(0, epochs=self.epochs, weight_decay=self.weight_decay)
        one_of(PHASE_OPTIMIZERS, optimizer=self.optimizer)
        positive(learning_rate=self.learning_rate)
        within("(0, 1]", layer_decay=self.layer_decay)
        within("[0, 1)", drop_path=self.drop_path)
        one_of(NECKS, neck=self.neck)


@dataclass(kw_only=True)
class UnsupervisedConfig(PhaseConfig):
    """Fine-tuning without labels: Cluster Contrast (arXiv 2103.11568)."""

    epochs: int = 50
    """Rounds of clustering and training."""
    iterations: int = 200
    """Optimizer steps in an epoch."""
    learning_rate: float = 3.5e-4
    """Learning rate at the start."""
    weight_decay: float = 5e-4
    decay_epochs: int = 20
    """The learning rate falls to a tenth every so many epochs."""
    temperature: float = 0.05
    """Of the cluster memory's softmax."""
    momentum: float = 0.1
    """Weight of the old vector in the memory's update."""
    hard: bool = True
    """Update a cluster with its least similar feature only."""
    drop_path: float = 0.3
    neck: str = "after"
    """Side of the neck whose feature is clustered and used for retrieval."""
    camera_proxies: bool = False
    """One memory vector for each camera of a cluster; an image is drawn to all those of its cluster."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    neighbors: NeighborActorsConfig = field(default_factory=NeighborActorsConfig)
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(identities=32, instances=8))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(temperature=self.temperature)
        within("[0, 1]", momentum=self.momentum)
        at_least(1, iterations=self.iterations, decay_epochs=self.decay_epochs)
        check_shared(self.cluster, self.neighbors)


@dataclass(kw_only=True)
class SupervisedConfig(PhaseConfig):
    """Fine-tuning with identity labels (TransReID-SSL, section 4): identity + soft-margin batch-hard triplet loss.

    The other losses are options; the defaults are the published recipe.
    """

    epochs: int = 120
    """Passes over the identities."""
    learning_rate: float = 4e-4
    """Peak learning rate."""
    weight_decay: float = 1e-4
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
    """How far a center moves towards its features in a step."""
    drop_path: float = 0.1
    neck: str = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(IDENTITY_LOSSES, identity=self.identity)
        positive(identity_scale=self.identity_scale)
        within("[0, 1)", label_smoothing=self.label_smoothing)
        at_least(
            0,
            warmup_epochs=self.warmup_epochs,
            triplet_weight=self.triplet_weight,
            triplet_margin=self.triplet_margin,
            center_weight=self.center_weight,
        )
        within("[0, 1]", center_rate=self.center_rate)
        limit = LARGEST_MARGIN.get(self.identity, float("inf"))
        if not 0.0 <= self.identity_margin < limit:
            raise ValueError(f"identity_margin must be in [0, {limit:.4g}) for {self.identity}: got {self.identity_margin}")
