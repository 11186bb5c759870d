"""Properties of a checkpoint and how each is known: stated by the file, given by the caller, or assumed from a published layout.

Nothing is guessed silently. `About` lists every assumption with its reason. If the shapes fit several published models that
differ in a property (6 or 12 heads at width 384), Unsaid is raised.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from reidssl.models.given import LoadConfig, Unsaid

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# How the published code uses its models, by layout: ((mean, std) of the normalization, side of the neck).
RELEASED = {"dino": (IMAGENET, "before"), "reid": (HALVES, "before"), "cluster_contrast": (HALVES, "after")}
# (width, depth) -> {number of heads: published models of that size with this number}.
USUAL_HEADS: dict[tuple[int, int], dict[int, str]] = {
    (192, 12): {3: "timm, DeiT", 12: "MAE-Lite"},
    (384, 12): {6: "timm, DeiT, DINO", 12: "MoCo v3"},
    (768, 12): {12: "every ViT-B"},
    (1024, 24): {16: "every ViT-L"},
    (1280, 32): {16: "every ViT-H"},
    (768, 8): {8: "TransReID's and old timm's vit_small"},
}
_MOCO_V3 = {384: 12, 768: 12, 1024: 16}
_OF_64 = "heads of 64 channels, as published"
# Published file names of models whose weights alone do not determine the number of heads.
_PUBLISHED = (
    (r"dino_deitsmall|dino_vits\d", "DINO's ViT-S, by its published file name"),
    (r"dinov2_vits14", "DINOv2's ViT-S, by its published file name"),
    (r"deit_small_patch16_224-", "DeiT-S, by its published file name"),
    (r"deit_tiny_patch16_224-", "DeiT-Ti, by its published file name"),
)


class Answer(NamedTuple):
    """The value of one property of a model, and how it is known."""

    value: Any
    how: str
    """How the value is known: "said" (stated by the file), "given" (by the caller) or "assumed"."""
    why: str = ""
    """Reason or source, for messages."""


@dataclass
class About:
    """Description of a checkpoint."""

    kind: str
    """Kind of checkpoint, such as "a DINO checkpoint"."""
    weights: str = ""
    """Label of the model that was chosen out of several; "" if the file has only one."""
    others: tuple[str, ...] = ()
    """Labels of the models that were not chosen."""
    left_out: tuple[str, ...] = ()
    """Names of tensors that belong to no model."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """Properties of the model by name, such as "heads" or "image_size"."""

    def __str__(self) -> str:
        """One line: the kind, the chosen weights, and all properties grouped by how they are known."""
        parts = [self.kind + (f", weights '{self.weights}' (not {', '.join(self.others)})" if self.weights else "")]
        for how, words in (("said", "says"), ("given", "given"), ("assumed", "assumed")):
            told = [
                f"{name} {_short(answer.value)}" + (f" ({answer.why})" if answer.why else "")
                for name, answer in self.answers.items()
                if answer.how == how
            ]
            if told:
                parts.append(f"{words}: {', '.join(told)}")
        if self.left_out:
            parts.append(f"left out: {', '.join(Counter(name.split('.')[0] for name in self.left_out))}")
        return "; ".join(parts)

    def without(self, *names: str) -> "About":
        """A copy without the properties of these names."""
        return replace(self, answers={name: answer for name, answer in self.answers.items() if name not in names})

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for records: {"kind", "weights", name: value ..., "given": names, "assumed": names}."""
        return (
            {"kind": self.kind, "weights": self.weights}
            | {name: answer.value for name, answer in self.answers.items()}
            | {how: [name for name, answer in self.answers.items() if answer.how == how] for how in ("given", "assumed")}
        )


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join("-" if each is None else f"{each:g}" for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Origin(NamedTuple):
    """Where a checkpoint comes from, and what follows for its number of heads."""

    kind: str
    """Kind of checkpoint, for messages."""
    heads: str
    """Rule for the number of heads: "64" (heads of 64 channels), "moco" (MoCo v3's numbers) or "open" (unknown)."""


def origin_of(
    tensors: Mapping[str, Tensor], root: Sequence[str], around: Sequence[str], layout: str, name: str, hugging_face: bool
) -> Origin:
    """The origin of a checkpoint, recognized by the names of its tensors.

    Args:
        tensors: tensors of the model by flat names.
        root: parts of the model's root in the file.
        around: names in the file outside of the model.
        layout: released layout of the names.
        name: name of the file.
        hugging_face: whether the names are those of Hugging Face's transformers.
    """
    beside = [*root, *(part for each in around for part in each.split(".")[:4])]
    patches = tensors["pos_embed"].shape[1] - 1 if "pos_embed" in tensors and tensors["pos_embed"].ndim == 3 else 0
    if any(each.startswith("decoder_blocks.") for each in tensors) or "decoder" in around:
        return Origin("a MAE checkpoint, of which the encoder is taken", "open")
    if hugging_face:
        return Origin("a Hugging Face vision transformer", "open")
    if {"base_encoder", "momentum_encoder"} & set(beside):
        return Origin("a MoCo v3 checkpoint", "moco")
    if "patch_embed.conv1.weight" in tensors:
        return Origin("a TransReID-SSL model (ICS stem)", "64")
    if "bottleneck.weight" in tensors:
        return Origin(f"a released re-ID model (layout {layout})", "64")
    if {"teacher", "student", "dino_head", "ibot_head"} & set(beside) or any(
        each.startswith(("dino_head.", "ibot_head.", "head.mlp.", "head.last_layer.")) for each in tensors
    ):
        return Origin("a DINO checkpoint", "64")
    if "mask_token" in tensors and "blocks.0.ls1.gamma" in tensors:
        return Origin("a DINOv2 backbone", "64")
    if any(2 * columns * columns == patches or 3 * columns * columns == patches for columns in range(1, 40)):
        return Origin("a TransReID-SSL backbone (upright grid of patches)", "64")
    base = re.split(r"[\\/]", name)[-1]
    for pattern, words in _PUBLISHED:
        if re.search(pattern, base):
            return Origin(words, "64")
    return Origin("a plain vision transformer of unknown origin", "open")


def heads_of(origin: Origin, width: int, depth: int, given: int, described: Mapping[str, Any], name: str) -> Answer:
    """The number of attention heads and how it is known.

    Args:
        given: number given by the caller; 0: none.
        described: settings from config.json.
        name: name of the file in messages.

    Raises Unsaid if the number cannot be determined.
    """
    if given:
        return Answer(given, "given")
    if "heads" in described:
        return Answer(int(described["heads"]), "said", "config.json")
    if origin.heads == "moco" and width in _MOCO_V3:
        return Answer(_MOCO_V3[width], "assumed", "as MoCo v3 published")
    usual = USUAL_HEADS.get((width, depth), {})
    if len(usual) == 1 and origin.heads != "moco":
        ((heads, whose),) = usual.items()
        return Answer(heads, "assumed", whose)
    if origin.heads == "64" and width % 64 == 0:
        return Answer(width // 64, "assumed", _OF_64)
    # For another depth of a known width, the numbers of heads of that width are offered.
    same_width = [choices for (own, _), choices in USUAL_HEADS.items() if own == width]
    answers = (
        usual
        or {heads: whose for choices in same_width for heads, whose in choices.items()}
        or {heads: "" for heads in (width // 64, width // 32) if heads and width % heads == 0}
    )
    shown = ", ".join(f"{heads}{f' ({whose})' if whose else ''}" for heads, whose in sorted(answers.items()))
    raise Unsaid(
        name,
        f"is {origin.kind}, width {width}, depth {depth}, and does not say how many attention heads it has"
        + (f"; usual are {shown}, and another number gives wrong features" if shown else ""),
        "heads",
        [str(heads) for heads in sorted(answers)] or ["<number>"],
    )


def reading_of(given: LoadConfig, said: Mapping[str, Any], layout: str, is_reid: bool) -> dict[str, Answer]:
    """Normalization (mean, std) and, for a re-ID model, side of the neck, each with how it is known.

    said: values stated by the header or by the files beside the checkpoint.
    """
    (mean, std), neck = RELEASED[layout if is_reid else "dino"]
    whose = {"reid": "as TransReID", "cluster_contrast": "as Cluster Contrast"}.get(layout if is_reid else "", "ImageNet's")
    found = {}
    for name, assumed in (("mean", mean), ("std", std), ("neck", neck)):
        if name == "neck" and not is_reid:
            continue
        if getattr(given, name):
            told = getattr(given, name)
            instead = f"the file says {_short(said[name])}" if name in said and said[name] != told else ""
            found[name] = Answer(told, "given", instead)
        else:
            found[name] = Answer(said[name], "said") if name in said else Answer(assumed, "assumed", whose)
    return found
