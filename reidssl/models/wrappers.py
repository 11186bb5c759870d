"""Finding the vision transformer inside a checkpoint, whatever wrappers the training code has put around it.

A checkpoint is a tree of names: nested dicts, and dots in the names. The root of a model is the prefix of its parameter names,
for example "teacher.module.backbone." in "teacher.module.backbone.cls_token". A file with several roots holds several models.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from reidssl.models.given import Unsaid
from reidssl.models.strangers import no_model, stranger
from reidssl.models.weight_files import keys_of

# The first norm of the first block, under the names of timm, of DINOv2 with blocks in chunks, and of Hugging Face.
_ROOT = re.compile(r"^((?:.*\.)?)(?:blocks\.0\.(?:\d+\.)?norm1|encoder\.layer\.0\.(?:layernorm_before|norm1))\.weight$")
_TOKENS = ("cls_token", "embeddings.cls_token")
# (preferred model, the other model of the pair): the model that the authors of such checkpoints evaluate comes first.
_USUAL = (("teacher", "student"), ("base_encoder", "momentum_encoder"), ("encoder_q", "encoder_k"))
_BESIDE = ("bottleneck.", "classifier.", "jigsaw.")  # parts of a re-ID model beside its backbone
_WRAPPERS = ("module", "_orig_mod")
PLAIN = "plain"


class FoundModel(NamedTuple):
    """A model inside a checkpoint."""

    tensors: dict[str, Tensor]
    """Tensors by their names below the root, including neck, classifier and jigsaw branch beside the backbone."""
    root: tuple[str, ...]
    """Parts of the root, outermost first."""
    others: tuple[str, ...]
    """Labels of the other models in the file, as `weights` accepts them."""
    left_out: tuple[str, ...]
    """Names of tensors that belong neither to this model nor to the others."""
    taken: str
    """Label of this model, as `weights` accepts it; "" if it is the only one."""


def find_model(content: Any, name: str, weights: str = "") -> FoundModel:
    """Find the only vision transformer in the content of a file, or the one that `weights` names.

    With `weights` empty, the teacher is preferred to the student, and MoCo's trained encoder to the momentum encoder. Raises
    Unsaid if there are several models and no such rule applies, and ValueError that describes the file if there is no model.
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
        elif key.removeprefix(parent).startswith(_BESIDE) and key.startswith(parent):
            tensors[key.removeprefix(parent)] = value
        elif not any(key.startswith(other) for other in roots if other != root and len(other) > len(root)):
            left_out.append(key)
    wrong = stranger(flat | tensors, "", of_root=True)  # a complete ViT with additional parts that we do not support
    if wrong:
        raise ValueError(f"{name} {wrong}")
    return FoundModel(tensors, around, others, tuple(left_out), _label(root, roots) if others else "")


def _flatten(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors by their full dotted names, without other values and without the states of optimizers."""
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
    """The first part of a root that distinguishes it from the other roots; PLAIN if there is none."""
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
