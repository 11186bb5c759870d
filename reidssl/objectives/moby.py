"""MoBY: MoCo's queue with BYOL's asymmetric encoders (arXiv 2105.04553), one of the paper's comparisons to DINO.

Shapes: B images, V crops, T = 2 momentum views (the global crops, which come first), C = out_dim, Q = queue_size.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.models.initialization import seeded
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit, build_vit
from reidssl.objectives.base import MultiCropModel, Objective, ObjectiveOutput, Progress, StudentCall
from reidssl.objectives.objective_config import MobyConfig
from reidssl.precision import no_autocast, widened

MOMENTUM_VIEWS = 2


class MobyHead(nn.Module):
    """Projector and, for the student, predictor: float (B, width) -> (B, C).

    In both, batch norm and ReLU follow every layer except the last.
    """

    def __init__(self, width: int, config: MobyConfig, predict: bool, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.projector = _mlp(width, config.hidden, config.out_dim, config.projector_layers)
            self.predictor = _mlp(config.out_dim, config.hidden, config.out_dim, 2) if predict else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.predictor(self.projector(features))
        return projected


def _mlp(width: int, hidden: int, out_dim: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*parts, nn.Linear(width, out_dim))


class Moby(Objective):
    """InfoNCE between the student's crops, the key of the other view and a queue of earlier keys.

    `queue` (T, Q, C) holds unit keys of each momentum view, initially random ones. `position` () is the index of the next keys.
    The keys of a step enter the queue after the step, in the order of its micro-batches, so that the loss does not depend on the
    number of workers.
    """

    student_only = ("head.predictor.",)
    queue: Tensor
    position: Tensor

    def __init__(self, backbone_config: VitConfig, config: MobyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.student = MultiCropModel(build_vit(backbone_config, seed), MobyHead(backbone_config.width, config, True, seed + 1))
        teacher_backbone = build_vit(replace(backbone_config, drop_path=config.teacher_drop_path), seed)
        self.teacher: MultiCropModel = MultiCropModel(teacher_backbone, MobyHead(backbone_config.width, config, False, seed + 1))
        self.teacher.requires_grad_(False)
        with seeded(seed + 2):
            queue = torch.randn(MOMENTUM_VIEWS, config.queue_size, config.out_dim)
        self.register_buffer("queue", F.normalize(queue, dim=-1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch.

            loss = 2 * mean over momentum views m and crops v != m of
                   - log softmax([q[v] . k[m], q[v] . queue[m]^T] / t)[own key]

        With only the two global crops, this is the published sum of both directions. It is computed in fp32 also under autocast.

        Args:
            student_call: `self.student`, or an engine around it.
            crops: V >= 2 tensors float (B, 3, h, w), the two global crops first; B >= 2.
            progress: position in the run; not used, since nothing in this objective changes over a run.

        Returns:
            Terms "loss", "accuracy" (share of queries whose own key is the nearest of 1 + Q), "teacher_entropy" (in nats, of the
            softmax of one momentum view over the other's key and queue; near ln(1 + Q) means collapse) and "feature_std" (as in
            DINO). Rows "keys" (B, T, C).
        """
        if len(crops) < MOMENTUM_VIEWS or len(crops[0]) < 2:
            raise ValueError(f"MoBY needs 2 global crops of at least 2 images: got {len(crops)} crops of {len(crops[0])}")
        num_images = len(crops[0])
        queries = F.normalize(widened(student_call(crops).logits), dim=-1).view(len(crops), num_images, -1)
        teacher = self.teach(crops[:MOMENTUM_VIEWS])
        keys = F.normalize(teacher.logits, dim=-1).view(MOMENTUM_VIEWS, num_images, -1)
        scores = torch.cat(
            [self._scores(queries[v], keys[m], m) for m in range(MOMENTUM_VIEWS) for v in range(len(crops)) if v != m]
        )
        own = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        loss = 2 * F.cross_entropy(scores, own)
        with torch.no_grad():
            likeness = self._scores(keys[0], keys[1], 1).softmax(dim=-1)
            terms = {
                "loss": loss.detach(),
                "accuracy": (scores.argmax(dim=-1) == own).float().mean(),
                "teacher_entropy": torch.special.entr(likeness).sum(dim=-1).mean(),
                "feature_std": F.normalize(teacher.features, dim=-1).std(dim=0, correction=0).mean(),
            }
        return ObjectiveOutput(loss, terms, {}, {"keys": keys.transpose(0, 1)})

    def _scores(self, queries: Tensor, keys: Tensor, view: int) -> Tensor:
        """Logits (B, 1 + Q) of each query with its own key of a momentum view, then with the queue of this view."""
        with no_autocast(queries):
            positive = (queries * keys).sum(dim=-1, keepdim=True)
            return torch.cat((positive, queries @ self.queue[view].T), dim=-1) / self.config.temperature

    @torch.no_grad()
    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Replace the oldest keys of the queue by those of the step, {"keys": (N, T, C)}; by the last Q if N > Q."""
        size = self.config.queue_size
        keys = rows["keys"][-size:].to(self.queue)
        places = (self.position + torch.arange(len(keys), device=self.queue.device)) % size
        self.queue[:, places] = keys.transpose(0, 1)
        self.position.copy_((self.position + len(keys)) % size)

    def export_backbone(self) -> Vit:
        """A copy of the momentum encoder's backbone in eval mode, with the encoder's own batch norm statistics."""
        backbone = build_vit(replace(self.teacher.backbone.config, drop_path=0.0)).to(self.queue.device)
        backbone.load_state_dict(self.teacher.backbone.state_dict())
        return backbone.eval()
