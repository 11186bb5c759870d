"""Reading model files of ours and of others: flat names, and what the file is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from reidssl.models.given import Unsaid
from reidssl.models.hugging_face import describe, is_hugging_face, to_timm
from reidssl.models.knowledge import About, Answer, Origin, origin_of
from reidssl.models.released import depth_of, layout_of, to_flat
from reidssl.models.weight_files import ModelFile, Source, read_content, read_header, read_source
from reidssl.models.wrappers import find_model


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
        described = (
            {}
            if header.get("vit") or "cls_token" not in flat
            else describe(file.beside, flat["cls_token"].shape[-1], depth_of(flat))
        )
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from None
    if hugging_face and "norm_eps" not in described and "blocks.0.ls1.gamma" not in flat:
        about.answers["norm_eps"] = Answer(1e-12, "assumed", "Hugging Face's ViT")
    return Checkpoint(flat, header, layout, file.name, origin, about, described)


def read_state_dict(source: Source, weights: str = "") -> dict[str, Tensor]:
    """The tensors of `read_checkpoint`: flat names, on the CPU."""
    return read_checkpoint(source, weights).tensors
