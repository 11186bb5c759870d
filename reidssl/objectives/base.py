"""What every self-supervised objective offers to a training loop.

The loop owns the optimizer, the devices and the processes; an objective owns the maths. A step goes

    for each micro-batch:  output = objective(student_call, crops, progress);  backward(output.loss)
    once:                  optimizer step;  objective.update(mean of output.statistics, all output.rows);
                           objective.update_teacher(...)

so nothing that an objective remembers depends on how many micro-batches or workers a step is cut into.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from reidssl.models.vit import Vit
from reidssl.precision import widened


class StudentOutput(NamedTuple):
    """What `MultiCropModel` returns for V crops of B images each."""

    logits: Tensor  # (V * B, K), crop by crop
    features: Tensor  # (V * B, D), the backbone's features, before the head
    patch_logits: Tensor | None = None  # (M, K) of the M masked patches, where patches are predicted


class StudentCall(Protocol):
    """The student itself, or an engine that wraps it and gives the same result."""

    def __call__(self, crops: Sequence[Tensor], **options: Any) -> StudentOutput: ...


@dataclass(frozen=True)
class Progress:
    """Position in a run, in samples. All schedules are functions of it."""

    samples_seen: int
    samples_per_epoch: int
    samples_total: int
    micro_batch: int = 0
    """Place of the micro-batch within its step; (samples_seen, micro_batch) names it, whoever computes it."""

    @property
    def epoch(self) -> int:
        """Whole epochs that are behind us: 0 during the first."""
        return self.samples_seen // self.samples_per_epoch

    @property
    def exact_epoch(self) -> float:
        """Epochs that are behind us, with the part of the current one."""
        return self.samples_seen / self.samples_per_epoch

    @property
    def fraction(self) -> float:
        """Part of the run that is behind us, in [0, 1]."""
        return self.samples_seen / self.samples_total


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of one micro-batch. All but the loss carry no gradient."""

    loss: Tensor
    """Scalar to call backward on."""
    terms: dict[str, Tensor]
    """Scalars to report, the loss among them."""
    statistics: dict[str, Tensor]
    """What `update` needs, each averaged over all micro-batches of the step first."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """What `update` needs one by one: (B, ...), without gradient, of equal shape in every micro-batch."""


class MultiCropModel(nn.Module):
    """Backbone and head over crops of several sizes.

    Neighboring crops of equal size go through the backbone in one batch; the head sees all at once.
    """

    def __init__(self, backbone: Vit, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor], **head_options: Any) -> StudentOutput:
        """V crops float (B, 3, h, w) each -> logits (V * B, K) and features (V * B, D), in the order of the crops."""
        features = self.features(crops)
        return StudentOutput(self.head(features, **head_options), features)

    def features(self, crops: Sequence[Tensor]) -> Tensor:
        """The backbone's features (V * B, D) of the crops."""
        dtype = self.backbone.cls_token.dtype  # a bf16 student takes the fp32 crops that its fp32 teacher takes
        groups: list[list[Tensor]] = []
        for crop in crops:
            if groups and groups[-1][0].shape == crop.shape:
                groups[-1].append(crop)
            else:
                groups.append([crop])
        return torch.cat([self.backbone(torch.cat(group).to(dtype)) for group in groups])


class Objective(nn.Module):
    """Base class: a student that is trained and a teacher that follows it as an exponential moving average.

    The teacher stays fp32 (a momentum near 1 is lost in bf16), has no gradient, and runs in train mode
    because the batch norms of its stem keep statistics of their own.
    """

    student: nn.Module
    teacher: nn.Module | None
    bf16_teacher: bool = False
    """Whether the teacher computes in bf16 by autocast, as a student may; its weights and outputs stay fp32."""
    student_only: tuple[str, ...] = ()
    """Beginnings of the names of parameters that the teacher does not have, such as a predictor's."""
    freezable: tuple[str, ...] = ()
    """Ends of the names of the student's parameters that do not move while `is_frozen` says so."""

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch; pure, except for the running statistics of batch norms."""
        raise NotImplementedError

    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Take in what a whole step left, once per step.

        Args:
            statistics: means over its micro-batches.
            rows: (micro-batches * B, ...) in the order of its micro-batches.
        """
        raise NotImplementedError

    def export_backbone(self) -> Vit:
        """A copy of the backbone worth keeping, in eval mode."""
        raise NotImplementedError

    def is_frozen(self, progress: Progress) -> bool:
        """Whether the parameters of `freezable` are held at this point: their gradient is zero, and the optimizer must neither
        move nor decay them nor count the step for them.
        """
        return False

    def compile_backbones(self, **options: Any) -> None:
        """From now on both backbones run compiled, each as a whole with one graph for each crop size; names of parameters stay.

        Whole, because blocks by themselves are compiled again for every rate of drop path. Copies (`export_backbone`) are not
        compiled. options: of torch.compile.
        """
        for model in (self.student, self.teacher):
            if model is not None:
                model.get_submodule("backbone").compile(dynamic=False, **options)

    @torch.no_grad()
    def teach(self, crops: Sequence[Tensor], **options: Any) -> StudentOutput:
        """What the teacher says to crops, without gradient: float32, or float64 where the teacher is."""
        assert self.teacher is not None
        half = torch.autocast(crops[0].device.type, torch.bfloat16) if self.bf16_teacher else nullcontext()
        with half:
            output = self.teacher(crops, **options)
        patches = None if output.patch_logits is None else widened(output.patch_logits)
        return StudentOutput(widened(output.logits), widened(output.features), patches)

    @torch.no_grad()
    def update_teacher(self, student_parameters: Iterable[tuple[str, Tensor]], momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, for parameters and not for buffers.

        Args:
            student_parameters: (name within the student, full tensor of any float type); may come in several calls. A list is
                taken all at once, in few kernels; of another iterable each tensor need only be valid until the next.
            momentum: in [0, 1].
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1]: got {momentum}")
        if self.teacher is None:
            return
        own = dict(self.teacher.named_parameters())

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for name, value in student_parameters:
                if name.startswith(self.student_only):
                    continue
                if name not in own:
                    raise ValueError(f"the teacher has no parameter {name!r}; names are those of objective.student")
                yield own[name], value.to(own[name])

        if isinstance(student_parameters, list):
            found = list(pairs())
            if found:
                torch._foreach_lerp_([old for old, _ in found], [new for _, new in found], 1.0 - momentum)
            return
        for old, new in pairs():
            old.lerp_(new, 1.0 - momentum)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the objective remembers besides the student: its own buffers and all of the teacher.

        The tensors are the live ones, detached: copy them if they must outlive the next step.
        """
        return {name: value for name, value in self.state_dict().items() if not name.startswith("student.")}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; ValueError where names or shapes differ."""
        own = self.state_tensors()
        if own.keys() != tensors.keys():
            missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise ValueError(
                f"the saved state belongs to another objective or model: missing {missing[:3]}, unknown "
                f"{unknown[:3]} ({len(missing)} and {len(unknown)} in all); resume with the configuration of the run"
            )
        for name, value in tensors.items():
            if own[name].shape != value.shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} in the saved state and {tuple(own[name].shape)} "
                    "here; resume with the configuration of the run"
                )
            own[name].copy_(value)
