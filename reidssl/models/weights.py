"""Model files: safetensors with the configuration in the header, and reading of released checkpoints.

A file of ours rebuilds its model by itself: the header holds "kind" ("backbone" or "reid"), "vit" (VitConfig
as JSON) and, for re-ID models, "num_classes" and "cosine" (the kind of classifier). Released torch files are
read without running any code stored in them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from reidssl.models.given import LoadConfig, Unsaid
from reidssl.models.hugging_face import describe, is_hugging_face, to_timm
from reidssl.models.knowledge import About, Answer, Origin, heads_of, origin_of, reading_of
from reidssl.models.loading import CheckpointMismatch, LoadReport, load_into
from reidssl.models.reid import ReidModel
from reidssl.models.released import depth_of, infer_vit_config, layout_of, to_flat
from reidssl.models.vit import Vit, VitConfig, build_vit
from reidssl.models.weight_files import ModelFile, Source, read_content, read_header, read_source
from reidssl.models.wrappers import find_model

__all__ = [
    "Checkpoint", "CheckpointMismatch", "LoadConfig", "LoadReport", "ModelFile", "Source", "Unsaid", "load_into", "load_reid",
    "load_vit", "model_bytes", "read_checkpoint", "read_metadata", "read_state_dict", "save_model", "weights_hash",
]


class Checkpoint(NamedTuple):
    """A model file that was read."""

    tensors: dict[str, Tensor]
    """Under our flat names, on the CPU."""
    metadata: dict[str, str]
    """The header's entries of a safetensors file; empty for a torch file."""
    layout: str
    """The released layout of the names in the file, as `released.layout_of` tells it."""
    name: str
    """For messages."""
    origin: Origin = Origin("a model of ours", "open")
    """Whose it is, as its names tell."""
    about: About = About("a model of ours")
    """What reading it showed: kind, which of several models was taken, what was left out."""
    described: Mapping[str, Any] = {}
    """What config.json beside it says (heads, norm_eps, mean, std)."""

    @property
    def is_reid(self) -> bool:
        """Whether there is a batch-norm neck, so that `load_reid` can make a re-ID model of it."""
        return "bottleneck.weight" in self.tensors


def model_bytes(module: Vit | ReidModel, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The model as a safetensors file that `load_vit` and `load_reid` rebuild it from.

    `metadata` (strings, or anything JSON) goes into the header beside what rebuilding needs.
    """
    vit = module if isinstance(module, Vit) else module.backbone
    header = dict(metadata or {})
    header |= {"format": "pt", "kind": "backbone" if module is vit else "reid", "vit": asdict(vit.config)}
    if isinstance(module, ReidModel):
        header |= {"num_classes": module.num_classes, "cosine": module.cosine}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return safetensors.torch.save(tensors, metadata=text)


def save_model(module: Vit | ReidModel, metadata: Mapping[str, Any] | None, path: str | os.PathLike[str]) -> None:
    """Write `model_bytes` to a local file, which appears whole or not at all."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes(model_bytes(module, metadata))
    partial.replace(target)


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 (hex) of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_metadata(source: Source) -> dict[str, str]:
    """The header's entries of a safetensors file; empty for a torch file."""
    return read_header(read_source(source))


def read_checkpoint(source: Source | ModelFile | Checkpoint, weights: str = "") -> Checkpoint:
    """A model file of ours or of anybody who trains such backbones; or a folder with one, perhaps in shards.

    Understands safetensors, and torch files of plain tensors: DINO and DINOv2 training checkpoints, MoCo v3's, MAE's encoder,
    bare backbones, the supervised re-ID model, Cluster Contrast's, timm's and torch-hub's ViTs, Hugging Face's ViT and DINOv2;
    whatever is wrapped around them (`state_dict`, `module.`, `model.`, `backbone.`, `base.`, `encoder_q.`, ...).

    Args:
        weights: which of several models, e.g. "student"; empty: of teacher and student the teacher, of two encoders of MoCo the
            trained one. A Checkpoint is returned as it was read.

    Raises Unsaid where several are there and none is usual, ValueError that names the file and says what it is.
    """
    if isinstance(source, Checkpoint):
        return source
    file = read_source(source)
    content, header = read_content(file), read_header(file)
    lightning = isinstance(content, Mapping) and any("lightning" in str(key).lower() for key in content)
    try:
        found = find_model(content, file.name, weights)
    except Unsaid:
        raise
    except ValueError as error:
        raise ValueError(f"{error} (a Lightning checkpoint)" if lightning else str(error)) from None
    hugging_face = is_hugging_face(found.tensors)
    flat: dict[str, Tensor] = {}
    for key, value in (to_timm(found.tensors) if hugging_face else found.tensors).items():
        if to_flat(key) in flat:
            raise ValueError(
                f"{file.name} has {to_flat(key)!r} twice (once as {key!r}): it holds several models; extract one first"
            )
        flat[to_flat(key)] = value
    names = [f"base.{key}" if found.root[-1:] == ("base",) else key for key in found.tensors]
    layout = layout_of(names)
    if "vit" in header:
        origin = Origin("a model of ours", "open")
    else:
        origin = origin_of(flat, found.root, [*found.left_out, *found.others], layout, file.name, hugging_face)
    kind = f"a Lightning checkpoint, {origin.kind}" if lightning else origin.kind
    about = About(kind, found.taken, found.others, found.left_out)
    try:
        described = {} if header.get("vit") or "cls_token" not in flat else describe(
            file.beside, flat["cls_token"].shape[-1], depth_of(flat))
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from None
    if hugging_face and "norm_eps" not in described and "blocks.0.ls1.gamma" not in flat:
        about.answers["norm_eps"] = Answer(1e-12, "assumed", "Hugging Face's ViT")
    return Checkpoint(flat, header, layout, file.name, origin, about, described)


def read_state_dict(source: Source, weights: str = "") -> dict[str, Tensor]:
    """The tensors of `read_checkpoint`: flat names, on the CPU."""
    return read_checkpoint(source, weights).tensors


def load_vit(
    source: Source | ModelFile | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    given: LoadConfig | None = None,
    on_load: Callable[[LoadReport], object] | None = None,
    **changes: Any,
) -> Vit:
    """The backbone of a file of ours or a released one, in eval mode.

    Args:
        weights: which of the models in a training checkpoint, e.g. "student"; empty as for `read_checkpoint`: the teacher.
        hw_ratio: height / width of the images that a released file was trained on, where its number of patches leaves
            that open (16 could be 4 x 4 or 8 x 2) or is not understood. Our own files know it. As in the published rule it
            counts only where the number of patches is not that of `image_size`.
        given: what else the file does not say and the caller knows.
        on_load: called with the report, which says what the file says, what was given and what is assumed, e.g. `print`.
        changes: fields of VitConfig to change, e.g. drop_path=0.1 or image_size=(384, 128). heads is no change: it says what
            a released file does not.

    Raises ValueError for a file that is no ViT or has values that are not finite, Unsaid (a ValueError) for one that does not
    say how many heads it has or which of its models is meant, CheckpointMismatch for one that does not fit `changes`.
    """
    given = given or LoadConfig()
    checkpoint = read_checkpoint(source, weights or given.weights)
    vit, source_grid, about = _build(checkpoint, hw_ratio, given, changes)
    report = load_into(vit, checkpoint.tensors, checkpoint.name, source_grid)
    if on_load:
        on_load(replace(report, about=about))
    return vit.eval()


def load_reid(
    source: Source | ModelFile | Checkpoint,
    *,
    weights: str = "",
    hw_ratio: float | None = None,
    cosine: bool | None = None,
    given: LoadConfig | None = None,
    on_load: Callable[[LoadReport], object] | None = None,
    **changes: Any,
) -> ReidModel:
    """The re-ID model of a file, in eval mode; arguments as for `load_vit`.

    Neck and classifier must be whole and of the backbone's width, else CheckpointMismatch; only camera embeddings may differ
    (`num_cameras`). ValueError if the file is a backbone alone.

    Args:
        cosine: whether the classifier gives cosines, as those trained with ArcFace, CosFace or circle loss do. None: what our
            own files say, and linear for released ones, which do not tell.
    """
    given = given or LoadConfig()
    checkpoint = read_checkpoint(source, weights or given.weights)
    if not checkpoint.is_reid:
        raise ValueError(
            f"{checkpoint.name} is a backbone without neck, not a re-ID model; load it with load_vit and fine-tune it first"
        )
    vit, source_grid, about = _build(checkpoint, hw_ratio, given, changes)
    classifier = checkpoint.tensors.get("classifier.weight")
    if cosine is None:
        cosine = checkpoint.metadata.get("cosine") == "true"
    model = ReidModel(vit, 0 if classifier is None or not classifier.ndim else len(classifier), cosine=cosine)
    report = load_into(model, checkpoint.tensors, checkpoint.name, source_grid, replaceable=("camera_embed",))
    if on_load:
        on_load(replace(report, about=about))
    return model.eval()


def _build(checkpoint: Checkpoint, hw_ratio: float | None, given: LoadConfig,
           changes: dict[str, Any]) -> tuple[Vit, tuple[int, int], About]:
    """An empty backbone for the file with `changes`, the grid of the file's position embeddings, and what is known."""
    known = [field.name for field in fields(VitConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be changed: a backbone's configuration has {', '.join(known)}")
    if "heads" in changes:
        given = replace(given, heads=changes["heads"])
    changes = {name: value for name, value in changes.items() if name != "heads"}
    if "vit" in checkpoint.metadata:
        config, answers = _stored_config(checkpoint), {}
        _refuse_contradictions(checkpoint.name, config, given)
        for name in ("heads", "image_size", "stride"):
            answers[name] = Answer(getattr(config, name), "said")
        if config.gem_pooling:
            answers["gem_pooling"] = Answer(True, "said")
    else:
        config, answers = _learnt_config(checkpoint, hw_ratio, given, changes)
    is_reid = checkpoint.is_reid and checkpoint.metadata.get("kind", "reid") == "reid"
    answers |= reading_of(given, _said(checkpoint), checkpoint.layout, is_reid)
    answers |= _cameras(checkpoint, config, given)
    about = replace(checkpoint.about, answers={"width": Answer(config.width, "said"), "depth": Answer(config.depth, "said")}
                    | checkpoint.about.answers | answers)
    return build_vit(replace(config, **changes)), config.grid(*config.image_size), about


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    """mean, std and neck as header or config.json have them."""
    said = {name: checkpoint.described[name] for name in ("mean", "std", "neck") if name in checkpoint.described}
    try:
        said |= {name: json.loads(checkpoint.metadata[name]) for name in ("mean", "std") if name in checkpoint.metadata}
    except ValueError as error:
        raise ValueError(f"{checkpoint.name} has a mean or std in its header that is no list of numbers ({error})") from None
    return said | ({"neck": checkpoint.metadata["neck"]} if "neck" in checkpoint.metadata else {})


def _learnt_config(checkpoint: Checkpoint, hw_ratio: float | None, given: LoadConfig,
                   changes: dict[str, Any]) -> tuple[VitConfig, dict[str, Answer]]:
    """The configuration of a file that carries none, and how each part of it is known."""
    tensors, name = checkpoint.tensors, checkpoint.name
    told, given = given.as_dict(), _completed(checkpoint, given)

    def how(*names: str) -> str:
        return "given" if any(field in told for field in names) else "said"

    # A first look with one head, whose shapes all the rest follows from: it refuses what is no ViT.
    own_grid = bool(given.image_size or given.stride)
    size = (given.image_size[0], given.image_size[1]) if given.image_size else changes.get("image_size")
    stride = given.stride or (0 if given.image_size else changes.get("stride", 0))
    config = infer_vit_config(tensors, name, heads=1, image_size=size, stride=stride, hw_ratio=hw_ratio, own_grid=own_grid)
    heads = heads_of(checkpoint.origin, config.width, config.depth, given.heads, checkpoint.described, name)
    try:
        config = replace(config, heads=heads.value, gem_pooling=given.gem_pooling)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    known = how("image_size", "stride") if own_grid else "given" if hw_ratio and config.image_size != size else "assumed"
    why = "{} x {} patches".format(*config.grid(*config.image_size))
    why += ", as the images here" if known == "assumed" and config.image_size == size else ""
    answers = {"heads": heads, "image_size": Answer(config.image_size, known, why),
               "stride": Answer(config.stride or config.patch_size, how("stride") if given.stride else known)}
    if given.gem_pooling:
        answers["gem_pooling"] = Answer(True, how("gem_pooling"))
    eps = checkpoint.described.get("norm_eps") or (
        checkpoint.about.answers["norm_eps"].value if "norm_eps" in checkpoint.about.answers else config.norm_eps)
    if "norm_eps" in checkpoint.described and eps != config.norm_eps:
        answers["norm_eps"] = Answer(eps, "said", "config.json")
    return replace(config, norm_eps=eps), answers


def _completed(checkpoint: Checkpoint, given: LoadConfig) -> LoadConfig:
    """What was given, and where it was not, what config.json beside a file that we wrote in another layout says."""
    return replace(LoadConfig(**checkpoint.described.get("load", {})), **given.as_dict())


def _cameras(checkpoint: Checkpoint, config: VitConfig, given: LoadConfig) -> dict[str, Answer]:
    """Which camera each row of the camera embeddings stands for (None: a row of another data set), and their weight."""
    if not config.num_cameras:
        if given.cameras:
            raise ValueError(f"{checkpoint.name} has no camera embeddings, so cameras={list(given.cameras)} means nothing to it")
        return {}
    found, told, given = {}, given.as_dict(), _completed(checkpoint, given)
    if "cameras" in checkpoint.metadata:
        found["cameras"] = Answer(json.loads(checkpoint.metadata["cameras"]), "said")
    elif given.cameras:
        found["cameras"] = Answer(list(given.cameras), "given" if "cameras" in told else "said")
    if found and len(found["cameras"].value) != config.num_cameras:
        cameras = found["cameras"]
        raise ValueError(f"{checkpoint.name} has embeddings of {config.num_cameras} cameras, and {len(cameras.value)} camera "
                         f"numbers are {cameras.how}: {cameras.value}")
    if "vit" in checkpoint.metadata:
        return found | {"camera_weight": Answer(config.camera_weight, "said")}
    if given.camera_weight:
        config.camera_weight = given.camera_weight
        return found | {"camera_weight": Answer(config.camera_weight, "given" if "camera_weight" in told else "said")}
    return found | {"camera_weight": Answer(config.camera_weight, "assumed", "as TransReID")}


def _refuse_contradictions(name: str, config: VitConfig, given: LoadConfig) -> None:
    """ValueError where the caller says something else than a file of ours."""
    stride = config.stride or config.patch_size
    for field, own, told in (("heads", config.heads, given.heads), ("stride", stride, given.stride),
                             ("image_size", list(config.image_size), list(given.image_size)),
                             ("gem_pooling", config.gem_pooling, given.gem_pooling),
                             ("camera_weight", config.camera_weight, given.camera_weight)):
        if told and told != own:
            raise ValueError(f"{name} says {field} {own}, and {field}={told} was given: leave it out, the file is a model of "
                             "ours and says what it was trained with")


def _stored_config(checkpoint: Checkpoint) -> VitConfig:
    """What the header of a file of ours says; ValueError where it says nothing that we understand."""
    try:
        return VitConfig(**json.loads(checkpoint.metadata["vit"]))
    except (ValueError, TypeError) as error:  # JSON that is broken; fields or types that are not ours
        raise ValueError(
            f"{checkpoint.name} has a \"vit\" entry in its header that is no configuration of a backbone ({error}): it was "
            "written by another version, or changed since"
        ) from error
