"""The interface between self-supervised objectives and the training loop.

The loop owns the optimizer, the devices and the processes. An objective owns the mathematics. A step is

    for each micro-batch:  output = objective(student_call, crops, progress);  backward(output.loss)
    once:                  optimizer step;  objective.update(mean of output.statistics, all output.rows);
                           objective.update_teacher(...)

so the state of an objective does not depend on the number of micro-batches or workers of a step.
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
    """The output of `MultiCropModel` for V crops of B images each."""

    logits: Tensor  # (V * B, K), crop by crop
    features: Tensor  # (V * B, D), the backbone's features, before the head
    patch_logits: Tensor | None = None  # (M, K) of the M masked patches, if patches are predicted


class StudentCall(Protocol):
    """The student, or an engine that wraps it and returns the same result."""

    def __call__(self, crops: Sequence[Tensor], **options: Any) -> StudentOutput: ...


@dataclass(frozen=True)
class Progress:
    """Position in a run, in samples. All schedules are functions of this position."""

    samples_seen: int
    samples_per_epoch: int
    samples_total: int
    micro_batch: int = 0
    """Index of the micro-batch within its step. (samples_seen, micro_batch) identifies it, whichever worker computes it."""

    @property
    def epoch(self) -> int:
        """Number of completed epochs: 0 during the first."""
        return self.samples_seen // self.samples_per_epoch

    @property
    def exact_epoch(self) -> float:
        """Number of completed epochs, including the completed fraction of the current one."""
        return self.samples_seen / self.samples_per_epoch

    @property
    def fraction(self) -> float:
        """Completed fraction of the run, in [0, 1]."""
        return self.samples_seen / self.samples_total


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of one micro-batch. Only the loss has a gradient."""

    loss: Tensor
    """Scalar to call backward on."""
    terms: dict[str, Tensor]
    """Scalars to report, including the loss."""
    statistics: dict[str, Tensor]
    """Inputs of `update` that the loop first averages over all micro-batches of the step."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of `update` that are concatenated over micro-batches: (B, ...), of equal shape in every micro-batch."""


class MultiCropModel(nn.Module):
    """Backbone and head for crops of several sizes.

    Consecutive crops of equal size go through the backbone in one batch. The head processes the features of all crops at once.
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
        dtype = self.backbone.cls_token.dtype  # a bf16 student is given the same fp32 crops as its fp32 teacher
        groups: list[list[Tensor]] = []
        for crop in crops:
            if groups and groups[-1][0].shape == crop.shape:
                groups[-1].append(crop)
            else:
                groups.append([crop])
        return torch.cat([self.backbone(torch.cat(group).to(dtype)) for group in groups])


class Objective(nn.Module):
    """Base class: a student that is trained, and a teacher that is an exponential moving average of the student.

    The teacher's weights are fp32, because updates with a momentum near 1 are lost in bf16. The teacher has no gradient, and runs
    in train mode because the batch norms of its stem keep their own statistics.
    """

    student: nn.Module
    teacher: nn.Module | None
    bf16_teacher: bool = False
    """Whether the teacher computes in bf16 under autocast; its weights and outputs stay fp32."""
    student_only: tuple[str, ...] = ()
    """Prefixes of the names of parameters that the teacher does not have, such as those of a predictor."""
    freezable: tuple[str, ...] = ()
    """Suffixes of the names of the student's parameters that are frozen while `is_frozen` is true."""

    def forward(self, student_call: StudentCall, crops: list[Tensor], progress: Progress) -> ObjectiveOutput:
        """Loss of one micro-batch. Changes no state except the running statistics of batch norms."""
        raise NotImplementedError

    def update(self, statistics: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Update the state of the objective, once per step.

        Args:
            statistics: means over the micro-batches of the step.
            rows: (micro-batches * B, ...) in the order of the micro-batches.
        """
        raise NotImplementedError

    def export_backbone(self) -> Vit:
        """A copy of the backbone for later use, in eval mode."""
        raise NotImplementedError

    def is_frozen(self, progress: Progress) -> bool:
        """Whether the parameters in `freezable` are frozen at this position.

        Their gradient is then zero, and the optimizer must neither update nor decay them, nor count the step for them.
        """
        return False

    def compile_backbones(self, **options: Any) -> None:
        """Compile the parts of both backbones in place (`Vit.compile_parts`). options: arguments of torch.compile."""
        for model in (self.student, self.teacher):
            if model is not None:
                backbone = model.get_submodule("backbone")
                assert isinstance(backbone, Vit)
                backbone.compile_parts(**options)

    @torch.no_grad()
    def teach(self, crops: Sequence[Tensor], **options: Any) -> StudentOutput:
        """The teacher's output for crops, without gradient: float32, or float64 if the teacher is float64."""
        assert self.teacher is not None
        half = torch.autocast(crops[0].device.type, torch.bfloat16) if self.bf16_teacher else nullcontext()
        with half:
            output = self.teacher(crops, **options)
        patches = None if output.patch_logits is None else widened(output.patch_logits)
        return StudentOutput(widened(output.logits), widened(output.features), patches)

    @torch.no_grad()
    def update_teacher(self, student_parameters: Iterable[tuple[str, Tensor]], momentum: float) -> None:
        """Set teacher = momentum * teacher + (1 - momentum) * student for parameters, not for buffers.

        Args:
            student_parameters: (name within the student, full tensor of any float type), in one or several calls. A list is
                processed at once in few kernels. With another iterable, each tensor must be valid only until the next one.
            momentum: in [0, 1].

        Raises ValueError for an invalid momentum or an unknown name.
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
        """The state of the objective without the student: its own buffers, and all tensors of the teacher.

        The tensors are not copies. Copy them if they must not change with the next step.
        """
        return {name: value for name, value in self.state_dict().items() if not name.startswith("student.")}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_tensors`. Raises ValueError if names or shapes differ."""
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
