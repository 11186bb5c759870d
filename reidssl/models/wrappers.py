"""Finding the vision transformer inside a checkpoint, whatever training code has wrapped around it.

A checkpoint is a tree of names: dicts in dicts, and dots in the names. A model's root is the part of a name before its own
names begin, "teacher.module.backbone." for "teacher.module.backbone.cls_token". A file with several roots holds several models.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from reidssl.models.given import Unsaid
from reidssl.models.strangers import no_model, stranger
from reidssl.models.weight_files import keys_of

# The first norm of the first block: timm's names, DINOv2's with blocks in chunks, and Hugging Face's.
_ROOT = re.compile(r"^((?:.*\.)?)(?:blocks\.0\.(?:\d+\.)?norm1|encoder\.layer\.0\.(?:layernorm_before|norm1))\.weight$")
_TOKENS = ("cls_token", "embeddings.cls_token")
# (what is taken, what it is taken before), as those who published such checkpoints evaluate them.
_USUAL = (("teacher", "student"), ("base_encoder", "momentum_encoder"), ("encoder_q", "encoder_k"))
_NECK = ("bottleneck.", "classifier.")
_WRAPPERS = ("module", "_orig_mod")
PLAIN = "plain"


class FoundModel(NamedTuple):
    """A model inside a checkpoint."""

    tensors: dict[str, Tensor]
    """Under the names below its root, with the neck and classifier beside it."""
    root: tuple[str, ...]
    """The names around it, outermost first."""
    others: tuple[str, ...]
    """What other models there are, as `weights` would name them."""
    left_out: tuple[str, ...]
    """Names outside of it, without those of other models."""
    taken: str
    """What `weights` would name it; "" where there is only one."""


def find_model(content: Any, name: str, weights: str = "") -> FoundModel:
    """The one vision transformer in what a file holds, or the one that `weights` names.

    Of teacher and student the teacher is taken, of MoCo's two encoders the one that is trained. Raises Unsaid where several are
    there and none is usual, ValueError saying what the file is where there is none.
    """
    flat = _flatten(content)
    if not flat:
        raise ValueError(no_model(content, name))
    roots = _roots(flat)
    if not roots:
        raise ValueError(f"{name} {stranger(flat, keys_of(content))}")
    labels = {_label(root, roots): root for root in roots}
    root = _chosen(roots, labels, weights, name, content)
    others = tuple(label for label, other in labels.items() if other != root)
    around = tuple(root.split(".")[:-1])
    parent = ".".join(around[:-1] + ("",)) if around and around[-1] in ("base", "backbone") else root
    tensors, left_out = {}, []
    for key, value in flat.items():
        if key.startswith(root):
            tensors[key.removeprefix(root)] = value
        elif key.removeprefix(parent).startswith(_NECK) and key.startswith(parent):
            tensors[key.removeprefix(parent)] = value
        elif not any(key.startswith(other) for other in roots if other != root and len(other) > len(root)):
            left_out.append(key)
    wrong = stranger(flat | tensors, "", of_root=True)  # one with everything of a ViT, and something that we do not have
    if wrong:
        raise ValueError(f"{name} {wrong}")
    return FoundModel(tensors, around, others, tuple(left_out), _label(root, roots) if others else "")


def _flatten(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors by their whole names; other values, and what optimizers keep, are left out."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for key, value in content.items():
            if not isinstance(key, str) or "optimizer" in key.lower():
                continue
            if isinstance(value, Tensor):
                found[prefix + key] = value
            elif isinstance(value, Mapping):
                found |= _flatten(value, f"{prefix}{key}.")
    return found


def _roots(flat: dict[str, Tensor]) -> list[str]:
    found = {match[1] for match in map(_ROOT.match, flat) if match}
    return sorted(root for root in found if any(root + token in flat for token in _TOKENS))


def _label(root: str, roots: list[str]) -> str:
    """The part of a root's name that tells it from the others."""
    own = root.split(".")[:-1]
    common = set.intersection(*(set(each.split(".")) for each in roots))
    different = [part for part in own if part not in common and part not in _WRAPPERS]
    return different[0] if different and len(roots) > 1 else PLAIN


def _chosen(roots: list[str], labels: dict[str, str], weights: str, name: str, content: Any) -> str:
    if weights:
        if weights in labels and len(roots) > 1:
            return labels[weights]
        exact = [root for root in roots if weights in root.split(".")[:-1]]
        if len(exact) == 1:
            return exact[0]
        raise ValueError(
            f"{name} has no weights under {weights!r}; it holds {keys_of(content)}"
            if not exact
            else f"{name} has several models under {weights!r}: {', '.join(exact)}"
        )
    if len(roots) == 1:
        return roots[0]
    for first, second in _USUAL:
        firsts, seconds = (
            [root for root in roots if any(part == word or part.startswith(f"{word}_") for part in root.split("."))]
            for word in (first, second)
        )
        if len(firsts) == 1 and len(firsts) + len(seconds) == len(roots):
            return firsts[0]
    raise Unsaid(name, f"holds several models ({', '.join(labels)}) and does not say which to take", "weights", list(labels))
