"""DINO with masked image modeling, as in iBOT (arXiv 2111.07832): the student also predicts the teacher's patch outputs.

    loss = DINO's loss on the class tokens  +  patch_weight * cross-entropy on the masked patches of the global crops

The student is given the global crops with blocks of patches replaced by a learned mask token. For the masked patches it must
predict the teacher's output for the same crop without a mask. With the ics stem, adjacent patches share some pixels before they
are masked.

Shapes: B images, V crops, T = 2 teacher views (the global crops, which come first), N patches of a global crop, M masked
patches of the micro-batch (the same number in each), K = out_dim, P = K or patch_out_dim.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reidssl.models.heads import DinoHead
from reidssl.models.initialization import seeded
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit
from reidssl.objectives.base import MultiCropModel, ObjectiveOutput, Progress, StudentCall, StudentOutput
from reidssl.objectives.dino import TEACHER_VIEWS, Dino
from reidssl.objectives.masking import patch_masks
from reidssl.objectives.objective_config import DinoMimConfig
from reidssl.precision import no_autocast
from reidssl.seeding import mix


class MaskedMultiCropModel(MultiCropModel):
    """A `MultiCropModel` that also returns logits of selected patches of the first crops.

    A student has a mask token, and replaces these patches by it. A teacher has none (`mask_token` None). With `patch_head` None,
    patches use the head of the class token.
    """

    def __init__(self, backbone: Vit, head: nn.Module, patch_head: nn.Module | None, mask_token: Tensor | None) -> None:
        super().__init__(backbone, head)
        self.patch_head = patch_head
        self.mask_token = None if mask_token is None else nn.Parameter(mask_token)

    def forward(self, crops: Sequence[Tensor], hidden: Tensor, places: Tensor, **head_options: Any) -> StudentOutput:  # type: ignore[override]
        """V crops float (B, 3, h, w) each -> logits (V * B, K), features (V * B, D), patch_logits (M, P).

        Args:
            crops: V crops, with the T masked ones first and of equal size.
            hidden: bool (T * B, N), the masked patches of the first T crops.
            places: int64 (M,), indices of the masked patches in the flattened `hidden`.
        """
        views = len(hidden) // len(crops[0])
        images = torch.cat(list(crops[:views])).to(self.backbone.cls_token.dtype)
        if self.mask_token is None:
            tokens = self.backbone(images, all_tokens=True)
        else:
            tokens = self.backbone(images, mask=hidden, mask_token=self.mask_token, all_tokens=True)
        patches = tokens[:, 1:].flatten(0, 1).index_select(0, places)
        features = self.backbone.pooled(tokens)
        if len(crops) > views:
            features = torch.cat((features, self.features(crops[views:])))
        if self.patch_head is not None:
            logits, patch_logits = self.head(features, **head_options), self.patch_head(patches, **head_options)
        else:
            logits, patch_logits = self.head(torch.cat((features, patches)), **head_options).split([len(features), len(patches)])
        return StudentOutput(logits, features, patch_logits)


def patch_loss(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """sum over masked patches m of  - weights[m] * sum_k targets[m, k] * log softmax(logits[m] / temperature)[k].

    Args:
        logits: float (M, P), logits of the student.
        targets: float32 (M, P), rows sum to 1, no gradient.
        weights: float32 (M,), from `PatchMasks`.
        temperature: positive.

    Returns:
        Scalar float32, 0 or more.
    """
    with no_autocast(logits):
        scaled = logits.float() / temperature
        return (weights * (scaled.logsumexp(dim=-1) - (targets * scaled).sum(dim=-1))).sum()


class DinoMim(Dino):
    """DINO on the class tokens and on the masked patches. `patch_center` (1, P) is the center of the patch logits.

    The masks are a function of (seed, samples seen, index of the micro-batch in its step).
    """

    student_only = ("mask_token",)
    config: DinoMimConfig
    patch_center: Tensor

    def __init__(self, backbone_config: VitConfig, config: DinoMimConfig, seed: int = 0) -> None:
        super().__init__(backbone_config, config, seed)
        self.seed = seed
        self.register_buffer("patch_center", torch.zeros(1, config.out_dim if config.shared_head else config.patch_out_dim))

    def build_models(self, backbone_config: VitConfig, seed: int) -> tuple[MultiCropModel, MultiCropModel]:
        """Student and teacher, with equal initial weights. Only the student has a mask token."""
        plain_student, plain_teacher = super().build_models(backbone_config, seed)
        config, patch_head = self.config, None
        if not config.shared_head:
            patch_head = DinoHead(
                backbone_config.width, config.patch_out_dim, config.hidden, config.bottleneck, seed + 2, config.head_batch_norm
            )
        with seeded(seed + 3):
            mask_token = nn.init.trunc_normal_(torch.empty(backbone_config.width), std=0.02)
        return (
            MaskedMultiCropModel(plain_student.backbone, plain_student.head, patch_head, mask_token),
            MaskedMultiCropModel(plain_teacher.backbone, plain_teacher.head, copy.deepcopy(patch_head), None),
        )

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch.

        Args:
            student_call: `self.student`, or an engine around it.
            crops: V >= 2 tensors float (B, 3, h, w), the two global crops first, of equal size.
            progress: position in the run, as for `Dino`; also determines the masks.

        Returns:
            The terms of `Dino` (computed from the class tokens, except "loss", which is the total), "dino" and "patch" (the two
            losses, unweighted) and "patch_entropy" (in nats, mean over masked patches; near 0 or ln P means collapse).
            Statistics "teacher_mean" (1, K) and "patch_mean" (1, P).
        """
        if len(crops) < TEACHER_VIEWS or crops[0].shape != crops[1].shape:
            raise ValueError(
                f"masked DINO needs {TEACHER_VIEWS} global crops of equal size first: got "
                f"{[tuple(crop.shape) for crop in crops[:TEACHER_VIEWS]]}"
            )
        grid = self.teacher.backbone.config.grid(*crops[0].shape[-2:])
        masks = patch_masks(
            mix(self.seed, progress.samples_seen, progress.micro_batch),
            TEACHER_VIEWS * len(crops[0]),
            grid,
            self.config.mask_share,
            self.config.mask_ratio,
            self.config.mask_aspect,
        ).to(crops[0].device)
        student = student_call(crops, hidden=masks.hidden, places=masks.places, freeze_last_layer=self.is_frozen(progress))
        teacher = self.teach(crops[:TEACHER_VIEWS], hidden=masks.hidden, places=masks.places)
        assert teacher.patch_logits is not None
        with torch.no_grad():
            temperature = self.config.teacher_temperature_at(progress)
            targets = self.targets(teacher.patch_logits, self.patch_center, temperature)
        output = self.distil(student, teacher, len(crops), progress)
        assert student.patch_logits is not None
        guess = patch_loss(student.patch_logits, targets, masks.weights, self.config.student_temperature)
        loss = output.loss + self.config.patch_weight * guess
        koleo = self.config.koleo_weight * output.terms["koleo"] if self.config.koleo_weight else 0.0
        terms = output.terms | {
            "loss": loss.detach(),
            "dino": output.terms["loss"] - koleo,
            "patch": guess.detach(),
            "patch_entropy": torch.special.entr(targets).sum(dim=-1).mean(),
        }
        statistics = output.statistics | {"patch_mean": teacher.patch_logits.mean(dim=0, keepdim=True)}
        return ObjectiveOutput(loss, terms, statistics)

    @torch.no_grad()
    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Update both centers with the means of the step, {"teacher_mean": (1, K), "patch_mean": (1, P)}."""
        super().update(statistics, rows)
        self.patch_center.lerp_(statistics["patch_mean"].to(self.patch_center), 1.0 - self.config.center_momentum)
