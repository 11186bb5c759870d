"""Building a backbone that fits a checkpoint, without copying its weights, and recording how each property is known."""

import json
from dataclasses import fields, replace
from typing import Any

from reidssl.models.given import LoadConfig, Unsaid
from reidssl.models.knowledge import About, Answer, heads_of, reading_of
from reidssl.models.model_config import VitConfig
from reidssl.models.reading import Checkpoint
from reidssl.models.released import infer_vit_config
from reidssl.models.vit import Vit, build_vit


def build_empty(
    checkpoint: Checkpoint, hw_ratio: float | None, given: LoadConfig, changes: dict[str, Any]
) -> tuple[Vit, tuple[int, int], About]:
    """Build a newly initialized backbone for a checkpoint.

    Args:
        hw_ratio: height / width of the training images, for `pos_grid`.
        given: properties that the file does not state.
        changes: fields of VitConfig to change. `heads` gives the number of heads instead of changing it.

    Returns:
        The backbone with `changes`, (rows, columns) of the position embeddings in the file, and the description of the file.

    Raises ValueError for unknown `changes`, for contradictions between `given` and a file of ours, and for shapes that do not
    fit; Unsaid if the number of heads is unknown.
    """
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
        config, answers = _learned_config(checkpoint, hw_ratio, given, changes)
    is_reid = checkpoint.is_reid and checkpoint.metadata.get("kind", "reid") == "reid"
    answers |= reading_of(given, _said(checkpoint), checkpoint.layout, is_reid)
    answers |= _cameras(checkpoint, config, given)
    about = replace(
        checkpoint.about,
        answers={"width": Answer(config.width, "said"), "depth": Answer(config.depth, "said")}
        | checkpoint.about.answers
        | answers,
    )
    return build_vit(replace(config, **changes)), config.grid(*config.image_size), about


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    """mean, std and neck as stated by the header or config.json."""
    said = {name: checkpoint.described[name] for name in ("mean", "std", "neck") if name in checkpoint.described}
    try:
        said |= {name: json.loads(checkpoint.metadata[name]) for name in ("mean", "std") if name in checkpoint.metadata}
    except ValueError as error:
        raise ValueError(f"{checkpoint.name} has a mean or std in its header that is no list of numbers ({error})") from None
    return said | ({"neck": checkpoint.metadata["neck"]} if "neck" in checkpoint.metadata else {})


def _learned_config(
    checkpoint: Checkpoint, hw_ratio: float | None, given: LoadConfig, changes: dict[str, Any]
) -> tuple[VitConfig, dict[str, Answer]]:
    """The configuration of a file that does not store one, and how each part of it is known."""
    tensors, name = checkpoint.tensors, checkpoint.name
    told, given = given.as_dict(), _completed(checkpoint, given)

    def how(*names: str) -> str:
        return "given" if any(field in told for field in names) else "said"

    # First with one head, since the shapes do not depend on the number of heads. This also rejects files that are not a ViT.
    own_grid = bool(given.image_size or given.stride)
    size = (given.image_size[0], given.image_size[1]) if given.image_size else changes.get("image_size")
    stride = given.stride or (0 if given.image_size else changes.get("stride", 0))
    if given.stride and not size:
        patches = tensors["pos_embed"].shape[1] - 1 if "pos_embed" in tensors else "its"
        raise Unsaid(
            name,
            f"has {patches} patches at stride {given.stride} and does not say of which image size",
            "image_size",
            ["[256,128]", "[384,128]"],
        )
    config = infer_vit_config(tensors, name, heads=1, image_size=size, stride=stride, hw_ratio=hw_ratio, own_grid=own_grid)
    heads = heads_of(checkpoint.origin, config.width, config.depth, given.heads, checkpoint.described, name)
    try:
        config = replace(config, heads=heads.value, gem_pooling=given.gem_pooling)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    known = how("image_size", "stride") if own_grid else "given" if hw_ratio and config.image_size != size else "assumed"
    why = "{} x {} patches".format(*config.grid(*config.image_size))
    why += ", as the images here" if known == "assumed" and config.image_size == size else ""
    answers = {
        "heads": heads,
        "image_size": Answer(config.image_size, known, why),
        "stride": Answer(config.stride or config.patch_size, how("stride") if given.stride else known),
    }
    if given.gem_pooling:
        answers["gem_pooling"] = Answer(True, how("gem_pooling"))
    eps = checkpoint.described.get("norm_eps") or (
        checkpoint.about.answers["norm_eps"].value if "norm_eps" in checkpoint.about.answers else config.norm_eps
    )
    if "norm_eps" in checkpoint.described and eps != config.norm_eps:
        answers["norm_eps"] = Answer(eps, "said", "config.json")
    return replace(config, norm_eps=eps), answers


def _completed(checkpoint: Checkpoint, given: LoadConfig) -> LoadConfig:
    """`given`, with empty fields filled from the config.json beside a file that we wrote in a foreign layout."""
    try:
        said = LoadConfig(**checkpoint.described.get("load", {}))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{checkpoint.name} has a config.json beside it whose "load" cannot be: {error}') from None
    return replace(said, **given.as_dict())


def _cameras(checkpoint: Checkpoint, config: VitConfig, given: LoadConfig) -> dict[str, Answer]:
    """The camera of each row of the camera embeddings (None: of another data set), and their weight; {} without embeddings.

    Raises ValueError if the number of cameras does not fit.
    """
    if not config.num_cameras:
        if given.cameras:
            raise ValueError(f"{checkpoint.name} has no camera embeddings, so cameras={list(given.cameras)} means nothing to it")
        return {}
    found, told, given = {}, given.as_dict(), _completed(checkpoint, given)
    if "cameras" in checkpoint.metadata:
        found["cameras"] = Answer(json.loads(checkpoint.metadata["cameras"]), "said")
        known = [-1 if camera is None else camera for camera in found["cameras"].value]
        if given.cameras and list(given.cameras) != known:
            raise ValueError(
                f"{checkpoint.name} says cameras {known}, and cameras={list(given.cameras)} was given: leave it out, the file is "
                "a model of ours and says what it was trained with"
            )
    elif given.cameras:
        found["cameras"] = Answer(list(given.cameras), "given" if "cameras" in told else "said")
    if found and len(found["cameras"].value) != config.num_cameras:
        cameras = found["cameras"]
        raise ValueError(
            f"{checkpoint.name} has embeddings of {config.num_cameras} cameras, and {len(cameras.value)} camera "
            f"numbers are {cameras.how}: {cameras.value}"
        )
    if "vit" in checkpoint.metadata:
        return found | {"camera_weight": Answer(config.camera_weight, "said")}
    if given.camera_weight:
        config.camera_weight = given.camera_weight
        return found | {"camera_weight": Answer(config.camera_weight, "given" if "camera_weight" in told else "said")}
    return found | {"camera_weight": Answer(config.camera_weight, "assumed", "as TransReID")}


def _refuse_contradictions(name: str, config: VitConfig, given: LoadConfig) -> None:
    """Raise ValueError if `given` contradicts the configuration stored in a file of ours."""
    stride = config.stride or config.patch_size
    for field, own, told in (
        ("heads", config.heads, given.heads),
        ("stride", stride, given.stride),
        ("image_size", list(config.image_size), list(given.image_size)),
        ("gem_pooling", config.gem_pooling, given.gem_pooling),
        ("camera_weight", config.camera_weight, given.camera_weight),
    ):
        if told and told != own:
            raise ValueError(
                f"{name} says {field} {own}, and {field}={told} was given: leave it out, the file is a model of "
                "ours and says what it was trained with"
            )


def _stored_config(checkpoint: Checkpoint) -> VitConfig:
    """The configuration in the header of a file of ours. Raises ValueError if it cannot be read."""
    try:
        return VitConfig(**json.loads(checkpoint.metadata["vit"]))
    except (ValueError, TypeError) as error:  # invalid JSON, unknown fields, or wrong types
        raise ValueError(
            f'{checkpoint.name} has a "vit" entry in its header that is no configuration of a backbone ({error}): it was '
            "written by another version, or changed since"
        ) from error
