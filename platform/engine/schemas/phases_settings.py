"""Settings of the fine-tuning phases."""

from dataclasses import dataclass, field
from typing import Any

from platform.engine.schemas.retrieval_settings import NeighborActorsConfig, check_shared
from reidssl.checks import at_least, one_of, positive, within
from reidssl.choices import LARGEST_MARGIN, NECKS
from reidssl.clustering.cluster_config import ClusterConfig
from reidssl.models.model_config import JigsawConfig

IDENTITY_LOSSES = ("cross_entropy", *LARGEST_MARGIN)
PHASE_OPTIMIZERS = ("sgd", "adamw")


@dataclass(kw_only=True)
class BackboneOverrides:
    """Changes to the configuration of a checkpoint's backbone. They leave its weights as they are."""

    stride: int = 0
    """Distance between patches in pixels; below the patch size, patches overlap (TransReID trains with 12). 0: unchanged."""
    gem_pooling: bool = False
    """Add the generalized mean (GeM) of the patch tokens to the class token."""

    def as_dict(self) -> dict[str, Any]:
        """The settings that differ from the checkpoint's configuration."""
        return {name: value for name, value in (("stride", self.stride), ("gem_pooling", self.gem_pooling)) if value}


@dataclass(kw_only=True)
class BatchConfig:
    """The batch of one optimizer step over all workers: P identities with K images each.

    The losses, the mining, the batch norm of the neck and the cluster memory see the whole batch, whatever `micro_batches` is.
    The batch norm of an ics stem sees one micro-batch. With more micro-batches than workers, the images go through the backbone
    a second time without gradients.
    """

    identities: int = 16
    """P, the number of identities in a batch."""
    instances: int = 4
    """K, the number of images per identity."""
    micro_batches: int = 0
    """Equal parts in which a batch goes through the backbone; the number of workers must divide it, and more parts than workers
    save memory but take about a third more time. 0: the least common multiple of scaling.workers and scaling.min_workers."""

    def __post_init__(self) -> None:
        at_least(1, identities=self.identities, instances=self.instances)
        if not 0 <= self.micro_batches <= self.images:
            raise ValueError(
                f"micro_batches must be between 0 (as many as workers) and the {self.images} images of a batch: "
                f"got {self.micro_batches}"
            )

    @property
    def images(self) -> int:
        """Images in a batch, P * K."""
        return self.identities * self.instances


@dataclass(kw_only=True)
class PhaseConfig:
    """Settings common to all phases: length, optimizer, model and batch. The subclasses set the defaults."""

    epochs: int
    """Number of epochs."""
    optimizer: str = "sgd"
    """sgd (momentum 0.9; in the supervised phase, biases have twice the learning rate) or adamw."""
    learning_rate: float
    """Largest learning rate."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each layer to the layer below it; 0.65 to 0.9 are usual. 1: no decay."""
    weight_decay: float
    """Weight decay."""
    freeze_layers: int = 0
    """Layers that keep their weights, from the input: 1 is the patch embedding with its stem, class token and position embedding,
    n + 1 also the first n blocks (as in MoCo v3, arXiv 2104.02057, which freezes the first layer). 0: train all."""
    ema_momentum: float = 0.0
    """Momentum of a moving average of the weights, which is evaluated, exported and passed to the next phase (Mean Teacher,
    arXiv 1703.01780); 0.999 is usual. 0: no average."""
    drop_path: float
    """Stochastic depth rate of the backbone."""
    neck: str
    """Feature used for retrieval: before or after the neck."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        at_least(0, epochs=self.epochs, weight_decay=self.weight_decay)
        one_of(PHASE_OPTIMIZERS, optimizer=self.optimizer)
        positive(learning_rate=self.learning_rate)
        within("(0, 1]", layer_decay=self.layer_decay)
        within("[0, 1)", drop_path=self.drop_path, ema_momentum=self.ema_momentum)
        at_least(0, freeze_layers=self.freeze_layers)
        one_of(NECKS, neck=self.neck)
        if self.batch.images < 2:
            raise ValueError("batch must have 2 images or more, for the batch norm of the neck: got identities 1 and instances 1")

    @property
    def bias_rate_factor(self) -> float:
        """Factor of the learning rate for biases with SGD."""
        return 1.0


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
    """Epochs after which the learning rate falls to a tenth, again and again."""
    temperature: float = 0.05
    """Temperature of the softmax over the cluster memory."""
    momentum: float = 0.2
    """Weight of the old vector when the cluster memory is updated."""
    hard: bool = True
    """Update the memory of a cluster with its least similar feature only."""
    drop_path: float = 0.3
    neck: str = "after"
    """Feature that is clustered and used for retrieval: before or after the neck."""
    camera_proxies: bool = False
    """Keep one memory vector for each camera of a cluster. The loss pulls an image toward all vectors of its cluster."""
    teacher_clusters: bool = False
    """Cluster the features of the averaged weights (ema_momentum), a mean teacher whose pseudo-labels change less from epoch to
    epoch (its role in MMT, arXiv 2001.01526, here with one network)."""
    teacher_weight: float = 0.0
    """Weight w of the mean teacher's soft labels: loss = (1 - w) contrast + w soft, where soft is the cross-entropy with the
    softmax over the clusters that the averaged weights (ema_momentum) give for another augmentation of each image (MMT, arXiv
    2001.01526, which uses 0.5, here with one network). It costs one more forward pass. 0: hard labels only."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    neighbors: NeighborActorsConfig = field(default_factory=NeighborActorsConfig)
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(identities=32, instances=8))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(temperature=self.temperature)
        if self.teacher_clusters and not self.ema_momentum:
            raise ValueError("teacher_clusters needs averaged weights: give ema_momentum, e.g. 0.999")
        within("[0, 1]", momentum=self.momentum)
        within("[0, 1)", teacher_weight=self.teacher_weight)
        if self.teacher_weight and not self.ema_momentum:
            raise ValueError("teacher_weight needs averaged weights: give ema_momentum, e.g. 0.999")
        at_least(1, iterations=self.iterations, decay_epochs=self.decay_epochs)
        check_shared(self.cluster, self.neighbors)


@dataclass(kw_only=True)
class SupervisedConfig(PhaseConfig):
    """Fine-tuning with identity labels (TransReID-SSL, section 4): identity loss and soft-margin batch-hard triplet loss.

    The defaults are the published recipe. The other losses are optional.
    """

    epochs: int = 120
    """Passes over the identities."""
    learning_rate: float = 4e-4
    """Peak learning rate."""
    weight_decay: float = 1e-4
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    identity: str = "cross_entropy"
    """Identity loss: cross_entropy (linear classifier), or one of the margin losses on cosines: arcface, cosface, circle."""
    identity_scale: float = 30.0
    """Scale of the cosines (margin losses only). Usual values: 30 to 64; for circle, 64 to 256."""
    identity_margin: float = 0.3
    """Margin (margin losses only): radians for arcface, a cosine for cosface and circle. For circle, smaller is stricter."""
    label_smoothing: float = 0.0
    """Label smoothing of the identity loss."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss. 0 disables it, for models too small to reduce it below ln 2."""
    triplet_margin: float = 0.0
    """Margin of the triplet loss; 0: soft margin."""
    center_weight: float = 0.0
    """Weight of the center loss on the feature before the neck; 5e-4 is usual. 0 disables it."""
    center_rate: float = 0.5
    """Step size of a center toward its features at each update, in [0, 1]."""
    jigsaw: JigsawConfig = field(default_factory=JigsawConfig)
    drop_path: float = 0.1
    neck: str = "before"

    @property
    def bias_rate_factor(self) -> float:
        return 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(IDENTITY_LOSSES, identity=self.identity)
        if self.triplet_weight and self.batch.identities < 2:
            raise ValueError("batch.identities must be at least 2 for the triplet loss (or set triplet_weight=0): got 1")
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
