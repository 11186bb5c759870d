"""The smallest settings that still exercise everything, seconds per run. Tests append overrides; the last value counts."""

from reidssl.models.model_config import VitConfig

# ---- a model

TINY_VIT = VitConfig(width=32, depth=2, heads=2, patch_size=16, image_size=(64, 32), stem_width=8)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

# ---- processes

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of worker processes that a test starts itself: without it, the second of them would look for a second GPU."""

# ---- overrides of the programs

MODEL = [
    "model.image_size=[64,32]",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "model.patch_size=16",
    "model.stem_width=8",
]
PRETRAIN = [
    *MODEL,
    "objective.dino.out_dim=32",
    "objective.dino.hidden=16",
    "objective.dino.bottleneck=8",
    "augment.local_size=[32,16]",
    "augment.num_local=1",
    "stream.micro_batch=8",
    "stream.micro_batches_per_step=2",
]
RESUMED = [
    *PRETRAIN,
    "model.depth=2",  # the first block drops nothing
    "model.drop_path=0.2",
    "stream.window_row_groups=3",
    "length.epochs=5",
    "optimizer.warmup_epochs=0.5",
    "optimizer.learning_rate=0.05",
    "tracking.every_steps=1",
    "checkpoint.every_steps=2",
    "scaling.threads=1",
    "scaling.max_failures=1",
]
"""Pre-training on 90 images: a checkpoint every other step, and epochs that begin within a micro-batch."""

FINETUNE = [
    "augment.image_size=[64,32]",
    "augment.pad=2",
    "augment.erasing=0.2",
    "evaluate_start=false",
    "scaling.threads=1",
    "scaling.max_failures=0",
    "supervised.epochs=3",
    "supervised.optimizer=adamw",
    "supervised.learning_rate=1e-3",
    "supervised.warmup_epochs=0",
    "supervised.batch.identities=3",
    "supervised.batch.instances=2",
    "unsupervised.epochs=2",
    "unsupervised.iterations=3",
    "unsupervised.batch.identities=4",
    "unsupervised.batch.instances=2",
    "unsupervised.cluster.k1=6",
    "unsupervised.cluster.k2=2",
    "unsupervised.cluster.eps=0.7",
    "unsupervised.cluster.min_samples=2",
]
"""Fine-tuning with small batches."""
FITTING = [
    "supervised.epochs=30",
    "supervised.learning_rate=3e-3",
    "supervised.drop_path=0",
    "augment.erasing=0",
    "supervised.batch.identities=6",
    "supervised.batch.instances=3",
]
"""Added to FINETUNE: long enough to fit."""

PIPELINE = [
    "experiment=demo",
    "pretrain_set.synthetic.num_pretrain=96",
    "pretrain_set.synthetic.pretrain_identities=24",
    "pretrain_set.synthetic.pretrain_scenes=8",
    "source_set.synthetic.source_identities=8",
    "target_set.synthetic.target_identities=16",
    "row_group_rows=32",
    "pretrain.model.image_size=[64,32]",
    "pretrain.model.width=32",
    "pretrain.model.depth=1",
    "pretrain.model.heads=2",
    "pretrain.model.patch_size=16",
    "pretrain.model.stem_width=8",
    "pretrain.objective.dino.out_dim=32",
    "pretrain.objective.dino.hidden=16",
    "pretrain.objective.dino.bottleneck=8",
    "pretrain.length.samples=192",
    "pretrain.stream.micro_batch=16",
    "pretrain.tracking.every_steps=2",
    "pretrain.checkpoint.every_steps=6",
    "pretrain.probe.every_steps=6",
    "pretrain.scaling.threads=1",
    "finetune.supervised.epochs=2",
    "finetune.supervised.batch.identities=4",
    "cfs.supervised.batch.identities=4",
    "finetune.unsupervised.epochs=1",
    "finetune.unsupervised.iterations=2",
    "finetune.unsupervised.cluster.k1=8",
    "finetune.unsupervised.cluster.eps=0.7",
    "finetune.unsupervised.cluster.min_samples=2",
    "finetune.scaling.threads=1",
    "settings=[usl]",
]
