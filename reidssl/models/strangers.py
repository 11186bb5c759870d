"""Recognition of checkpoints that this backbone cannot load, by the names of their tensors, and advice for the user."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from reidssl.models.weight_files import keys_of

_RESNETS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}
_VIT = "this backbone is a plain ViT; take one"
# (pattern of a tensor name, description and advice). `_ALMOST` lists names in files that are otherwise a ViT.
_ALMOST = (
    (
        r"(^|\.)(dist_token|distillation_token)$",
        "is a distilled DeiT with a distillation token beside the class token, which "
        "this backbone does not have: take the published model without distillation (deit_small, not deit_small_distilled)",
    ),
    (
        r"(^|\.)(rope_embed|rope|storage_tokens)(\.|$)",
        "is a DINOv3 model (rotary position embeddings, storage tokens), which "
        "this backbone does not have: take DINO or DINOv2 without registers",
    ),
    (
        r"(^|\.)(register_tokens|reg_token)$",
        "was trained with register tokens (as DINOv2's reg models and DINOv3), which this "
        "backbone does not have: take the published model without registers",
    ),
    (
        r"\.mlp\.(w12|weights_in)\.weight$",
        "has SwiGLU blocks (as DINOv2's ViT-g), which this backbone does not have; take one of the smaller models",
    ),
    (r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$", f"is a Swin transformer (windows): {_VIT}"),
    (
        r"(^|\.)rel_pos_bias\.|\.(gamma_1|relative_position_bias_table|attn\.q_bias)$",
        f"is a BEiT or EVA model (relative positions, scaled branches): {_VIT}",
    ),
    (r"(^|\.)norm_pre\.weight$", f"is a CLIP vision transformer (a norm before its blocks): {_VIT}"),
    (
        r"(^|\.)fc_norm\.weight$",
        "does not fit this backbone: a ViT whose patch tokens are averaged and normed after that "
        f"(fc_norm); {_VIT} with a class token",
    ),
    (r"(^|\.)attn_pool\.", f"is a SigLIP model (pooling by attention, no class token): {_VIT}"),
    (r"\.attn\.(q|k)_norm\.weight$", f"has norms of queries and keys in its attention (as ViT-22B): {_VIT} without"),
    (
        r"(^|\.)b1\.0\.norm1\.weight$",
        "is a TransReID model with the jigsaw branch (JPM: b1, b2, four local features), of which "
        "this backbone is only a part: train TransReID with JPM off, or take its global branch out yourself",
    ),
    (r"\.lora_[AB]\.", "is an adapter (LoRA): merge it into its model first (merge_and_unload) and save that"),
)
_OTHERS = (
    (
        r"(^|\.)visual\.(transformer\.resblocks|class_embedding|conv1|trunk)|vision_model\.encoder\.layers|(^|\.)clip(_model)?\.",
        f"is a CLIP model (image and text encoders): {_VIT}",
    ),
    (r"(conv_dw|dwconv)\.weight$", f"is a ConvNeXt (convolutional): {_VIT}"),
    (r"(^|\.)conv2\.0\.conv2a\.|(^|\.)conv5\.conv\.weight$", f"is an OSNet (convolutional): {_VIT}"),
    (
        r"(embed_tokens|lm_head|wte|word_embeddings|token_embedding|model\.layers\.0\.self_attn\.\w+)\.weight$",
        f"is a language model: {_VIT}",
    ),
    (r"(^|\.)blocks_token_only\.", f"is a CaiT (class attention in blocks of its own): {_VIT}"),
    (r"(^|\.)(double_blocks|down_blocks|time_embed)", f"is a diffusion model: {_VIT}"),
    (r"\.lora_[AB]\.", "is an adapter (LoRA): merge it into its model first (merge_and_unload) and save that"),
)


def stranger(tensors: Mapping[str, Tensor], shown: str, of_root: bool = False) -> str:
    """Description of a checkpoint that cannot be loaded, as the part of a message after the file's name.

    Args:
        tensors: tensors by their full names.
        shown: description of the outermost keys, for a checkpoint that is not recognized.
        of_root: the checkpoint is otherwise a ViT. The result is "" if nothing speaks against loading it.
    """
    names = list(tensors)
    almost = _first(_ALMOST, names)
    if almost or of_root:
        return almost
    resnet = _resnet(names)
    if resnet:
        return resnet
    found = _first(_OTHERS, names)
    if found:
        return found
    if re.search(r"blocks\.0\.|encoder\.layer\.0\.|layers\.0\.", " ".join(names[:400])):
        return (
            "is no vision transformer that we know: it has transformer blocks and not the class token, position embeddings "
            f"or norms that belong to them (as SigLIP, I-JEPA, mean-pooled ViTs, or one shard of several); it holds {shown}"
        )
    kernels = sum(value.ndim == 4 and value.shape[-1] > 1 for value in tensors.values())
    if kernels > 3:
        return f"is a convolutional network with {kernels} convolutions: {_VIT}"
    return f"holds no state dict of a vision transformer that we know; found {shown}"


def no_model(content: Any, name: str) -> str:
    """Message for content without any named tensors."""
    if isinstance(content, Mapping):
        if {"state", "param_groups"} <= set(content) or any("optimizer" in str(key).lower() for key in content):
            return (
                f"{name} is the state of an optimizer, without the weights of the model: name the checkpoint with the model "
                f"(it holds {keys_of(content)})"
            )
    elif hasattr(content, "shape"):
        return f"{name} is one tensor of shape {tuple(content.shape)}, no state dict: name the checkpoint"
    return f"{name} holds no state dict: expected names with tensors; found {keys_of(content)}"


def _first(table: Iterable[tuple[str, str]], names: list[str]) -> str:
    for pattern, words in table:
        if any(re.search(pattern, name) for name in names):
            return words
    return ""


def _resnet(names: list[str]) -> str:
    found = (re.search(r"(?:^|\.)layer(\d)\.(\d+)\.conv1\.weight$", name) for name in names)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    if not blocks:
        return ""
    first, second, third, fourth = (sum(stage == each for each, _ in blocks) for stage in (1, 2, 3, 4))
    counts = (first, second, third, fourth)
    two = counts == (3, 4, 6, 3) and not any(re.search(r"layer1\.0\.conv3\.weight$", name) for name in names)
    depth = "34" if two else _RESNETS.get(counts, "")
    moco = any(re.search(r"(encoder_q|base_encoder|encoder_k)\.", name) for name in names)
    ibn = any(re.search(r"layer1\.0\.bn1\.IN\.", name) for name in names)
    kind = f"ResNet{'-' if depth else ''}{depth}{'-IBN' if ibn else ''}"
    return f"is {'a MoCo' if moco else 'a'} {kind} (convolutional): {_VIT}"
