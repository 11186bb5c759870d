"""DINO: self-distillation with no labels (arXiv 2104.14294), as used by TransReID-SSL on person images.

Shapes: B images, V crops, T = 2 teacher views (the global crops, which come first), K = out_dim.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from reidssl.accelerator import compiled
from reidssl.models.heads import DinoHead
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit, build_vit
from reidssl.objectives.base import MultiCropModel, Objective, ObjectiveOutput, Progress, StudentCall, StudentOutput
from reidssl.objectives.koleo import koleo_loss
from reidssl.objectives.objective_config import DinoConfig
from reidssl.objectives.sinkhorn import sinkhorn_knopp
from reidssl.precision import no_autocast

TEACHER_VIEWS = 2


def dino_loss(student_logits: Tensor, teacher_probabilities: Tensor, num_crops: int, student_temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs (teacher view t, student crop v) with t != v.

        loss = mean over t != v and images of  - sum_k  q[t, k] * log softmax(s[v] / temperature)[k]

    Since each q sums to 1, the sum equals logsumexp(s[v] / temperature) - <q[t], s[v] / temperature>. One matrix product then
    computes all pairs, and no log-softmax of the size of the logits is stored.

    Args:
        student_logits: float (V * B, K), crop by crop, the teacher's views first and in the same order.
        teacher_probabilities: float (T * B, K), rows sum to 1, no gradient.
        num_crops: V, at least 2.
        student_temperature: positive.

    Returns:
        Scalar float32, 0 or more.

    Raises ValueError for shapes that do not fit.
    """
    num_images, classes = len(student_logits) // max(num_crops, 1), teacher_probabilities.shape[-1]
    num_views = len(teacher_probabilities) // max(num_images, 1)
    fits = student_logits.shape == (num_crops * num_images, classes) and teacher_probabilities.shape == (
        num_views * num_images,
        classes,
    )
    if num_crops < 2 or not 1 <= num_views <= num_crops or not fits:
        raise ValueError(
            "expected student logits (V * B, K) and teacher probabilities (T * B, K) with V = num_crops, at least 2, and T at "
            f"most V: got {tuple(student_logits.shape)} and {tuple(teacher_probabilities.shape)} with num_crops {num_crops}"
        )
    with no_autocast(student_logits):  # always fp32, because the sums have 65,536 terms
        work = compiled(_partitions_and_products, student_logits.device)
        log_partition, products = work(student_logits, teacher_probabilities, num_crops, num_views, student_temperature)
    cross_entropy = log_partition[:, None] - products / num_images
    same_view = torch.eye(num_crops, num_views, dtype=torch.bool, device=student_logits.device)
    loss: Tensor = cross_entropy.masked_fill(same_view, 0.0).sum() / (num_crops * num_views - num_views)
    return loss


def _partitions_and_products(
    student_logits: Tensor, probabilities: Tensor, num_crops: int, num_views: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Mean log partition of each crop (V,), and the inner products of the logits of all crops and the targets (V, T)."""
    logits = student_logits.float() / temperature
    log_partition = logits.logsumexp(dim=-1).view(num_crops, -1).mean(dim=1)
    return log_partition, logits.view(num_crops, -1) @ probabilities.view(num_views, -1).T


class Dino(Objective):
    """The DINO objective. The teacher starts as a copy of the student, without drop path.

    `center` (1, K) is subtracted from the teacher's logits so that no prototype dominates. The loss uses the center of the
    previous step, and `update` changes it once per step. With centering="sinkhorn_knopp", the targets are computed from the T * B
    teacher rows of the micro-batch instead, and the center is kept for monitoring only.
    """

    freezable = ("last_layer.weight_v",)
    config: DinoConfig
    teacher: MultiCropModel
    center: Tensor

    def __init__(self, backbone_config: VitConfig, config: DinoConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.student, self.teacher = self.build_models(backbone_config, seed)
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, config.out_dim))

    def build_models(self, backbone_config: VitConfig, seed: int) -> tuple[MultiCropModel, MultiCropModel]:
        """Student and teacher, with equal initial weights."""
        config = self.config
        head = DinoHead(backbone_config.width, config.out_dim, config.hidden, config.bottleneck, seed + 1, config.head_batch_norm)
        teacher_backbone = build_vit(replace(backbone_config, drop_path=0.0), seed)
        return MultiCropModel(build_vit(backbone_config, seed), head), MultiCropModel(teacher_backbone, copy.deepcopy(head))

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch.

        Args:
            student_call: `self.student`, or an engine around it.
            crops: V >= 2 tensors float (B, 3, h, w), the two global crops first.
            progress: position in the run; determines the teacher's temperature and whether the last layer is frozen.

        Returns:
            Terms:
                "loss";
                "teacher_entropy": in nats, mean over images; near ln K means collapse;
                "target_information": in nats, entropy of the mean target minus mean entropy of the targets, the information of
                    a target about its image; near 0 means collapse;
                "center_norm" and "logit_norm": norm of the center, and of the teacher's logits (mean over images); a center as
                    large as the logits means collapse;
                "feature_std": standard deviation over images of the teacher's unit features, mean over D; near 0 means
                    collapse;
                "koleo" (with KoLeo only): unweighted loss, sum over the two global crops.
            Statistic "teacher_mean" (1, K), the mean of the teacher's logits.
        """
        if len(crops) < TEACHER_VIEWS:
            raise ValueError(f"DINO needs at least its {TEACHER_VIEWS} global crops: got {len(crops)} crops")
        student = student_call(crops, freeze_last_layer=self.is_frozen(progress))
        return self.distil(student, self.teach(crops[:TEACHER_VIEWS]), len(crops), progress)

    def is_frozen(self, progress: Progress) -> bool:
        """Whether the last layer is frozen: in the first `freeze_last_layer_epochs` epochs."""
        return progress.epoch < self.config.freeze_last_layer_epochs

    def distil(self, student: StudentOutput, teacher: StudentOutput, num_crops: int, progress: Progress) -> ObjectiveOutput:
        """The output of `forward`, computed from the student's output for all crops and the teacher's for its views."""
        with torch.no_grad():
            targets = self.targets(teacher.logits, self.center, self.config.teacher_temperature_at(progress))
        loss = dino_loss(student.logits, targets, num_crops, self.config.student_temperature)
        extra = {}
        if self.config.koleo_weight:
            num_rows = len(teacher.features)  # the student's first rows are of the same views
            views = student.features[:num_rows].chunk(TEACHER_VIEWS)
            extra["koleo"] = sum((koleo_loss(view) for view in views), torch.zeros((), device=loss.device))
            loss = loss + self.config.koleo_weight * extra["koleo"]
        with torch.no_grad():
            unit_features = torch.nn.functional.normalize(teacher.features, dim=-1)
            entropy = torch.special.entr(targets).sum(dim=-1).mean()
            terms = {
                "loss": loss.detach(),
                "teacher_entropy": entropy,
                "target_information": torch.special.entr(targets.mean(dim=0)).sum() - entropy,
                "center_norm": self.center.norm(),
                "logit_norm": teacher.logits.float().norm(dim=-1).mean(),
                "feature_std": unit_features.std(dim=0, correction=0).mean(),
                **{name: value.detach() for name, value in extra.items()},
            }
        return ObjectiveOutput(loss, terms, {"teacher_mean": teacher.logits.mean(dim=0, keepdim=True)})

    @torch.no_grad()
    def targets(self, logits: Tensor, center: Tensor, temperature: float) -> Tensor:
        """The teacher's probabilities (rows, K) from its logits (rows, K) and a center (1, K)."""
        if self.config.centering == "sinkhorn_knopp":
            return sinkhorn_knopp(logits, temperature)
        return ((logits - center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Update the center with the mean teacher logits of the step, {"teacher_mean": (1, K)}."""
        self.center.lerp_(statistics["teacher_mean"].to(self.center), 1.0 - self.config.center_momentum)

    def export_backbone(self) -> Vit:
        """A copy of the teacher's backbone in eval mode, with the teacher's own batch norm statistics."""
        return copy.deepcopy(self.teacher.backbone).requires_grad_(True).eval()
