"""MoCo v3: contrastive learning of two views with a momentum encoder (arXiv 2104.02057), a comparison to DINO in the paper.

Shapes: B images, V crops, T = 2 momentum views (the global crops, which come first), C = out_dim. Negatives are the other
images of the micro-batch, so the loss depends only on the micro-batch.
"""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.models.initialization import seeded
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit, build_vit
from reidssl.objectives.base import MultiCropModel, Objective, ObjectiveOutput, Progress, StudentCall
from reidssl.objectives.objective_config import MocoV3Config
from reidssl.precision import no_autocast, widened

MOMENTUM_VIEWS = 2


class MocoHead(nn.Module):
    """Projector and, for the student, predictor: float (B, width) -> (B, C).

    Batch norm follows every linear layer, without affine parameters after the last layer of each. With 0 projector layers, the
    head is the identity.
    """

    def __init__(self, width: int, config: MocoV3Config, predict: bool, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.projector = _mlp(width, config.hidden, config.out_dim, config.projector_layers)
            between = config.out_dim if config.projector_layers else width
            self.predictor = _mlp(between, config.hidden, between, 2) if predict and config.projector_layers else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.predictor(self.projector(features))
        return projected


def _mlp(width: int, hidden: int, out_dim: int, layers: int) -> nn.Module:
    if layers == 0:
        return nn.Identity()
    widths = [width, *[hidden] * (layers - 1), out_dim]
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
        parts.append(nn.Linear(before, after, bias=False))
        parts.append(nn.BatchNorm1d(after, affine=number < layers))
        if number < layers:
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)


class MocoV3(Objective):
    """Symmetric InfoNCE between the student's crops and the momentum encoder's global views."""

    student_only = ("head.predictor.",)

    def __init__(self, backbone_config: VitConfig, config: MocoV3Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.student = MultiCropModel(build_vit(backbone_config, seed), MocoHead(backbone_config.width, config, True, seed + 1))
        teacher_backbone = build_vit(replace(backbone_config, drop_path=0.0), seed)
        self.teacher: MultiCropModel = MultiCropModel(teacher_backbone, MocoHead(backbone_config.width, config, False, seed + 1))
        self.teacher.requires_grad_(False)
        if config.freeze_patch_embed:
            self.student.backbone.patch_embed.requires_grad_(False)

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch.

            loss = 4 t * mean over momentum views m and crops v != m of  - log softmax(q[v] . k[m]^T / t)[same image]

        With only the two global crops, this is the published ctr(q[0], k[1]) + ctr(q[1], k[0]), ctr = 2 t * cross-entropy. It is
        computed in fp32 also under autocast.

        Args:
            student_call: `self.student`, or an engine around it.
            crops: V >= 2 tensors float (B, 3, h, w), the two global crops first; B >= 2.
            progress: position in the run; not used, since nothing in this objective changes over a run.

        Returns:
            Terms "loss", "accuracy" (share of queries whose nearest key is of the same image), "teacher_entropy" (in nats, of the
            softmax of one momentum view over the keys of the other; near ln B means collapse) and "feature_std" (as in DINO). No
            statistics.
        """
        if len(crops) < MOMENTUM_VIEWS or len(crops[0]) < 2:
            raise ValueError(f"MoCo v3 needs 2 global crops of at least 2 images: got {len(crops)} crops of {len(crops[0])}")
        temperature, num_images = self.config.temperature, len(crops[0])
        queries = F.normalize(widened(student_call(crops).logits), dim=-1).view(len(crops), num_images, -1)
        teacher = self.teach(crops[:MOMENTUM_VIEWS])
        keys = F.normalize(teacher.logits, dim=-1).view(MOMENTUM_VIEWS, num_images, -1)
        pairs = [(v, t) for v in range(len(crops)) for t in range(MOMENTUM_VIEWS) if v != t]
        with no_autocast(queries):
            scores = torch.einsum("vbc,tnc->vtbn", queries, keys) / temperature
            likeness = (keys[0] @ keys[1].T / temperature).softmax(dim=-1)
        chosen = torch.stack([scores[v, t] for v, t in pairs]).flatten(0, 1)  # (pairs * B, B)
        same = torch.arange(num_images, device=chosen.device).repeat(len(pairs))
        loss = MOMENTUM_VIEWS * 2 * temperature * F.cross_entropy(chosen, same)
        with torch.no_grad():
            terms = {
                "loss": loss.detach(),
                "accuracy": (chosen.argmax(dim=-1) == same).float().mean(),
                "teacher_entropy": torch.special.entr(likeness).sum(dim=-1).mean(),
                "feature_std": F.normalize(teacher.features, dim=-1).std(dim=0, correction=0).mean(),
            }
        return ObjectiveOutput(loss, terms, {})

    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Do nothing: the objective has no state other than the momentum encoder."""

    def export_backbone(self) -> Vit:
        """A copy of the momentum encoder's backbone in eval mode, with the encoder's own batch norm statistics."""
        return copy.deepcopy(self.teacher.backbone).requires_grad_(True).eval()
