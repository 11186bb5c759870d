"""Reading model files, our own and foreign ones: tensors under flat names, and a description of the file."""

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
    """The content of a model file."""

    tensors: dict[str, Tensor]
    """Tensors by our flat names, on the CPU."""
    metadata: dict[str, str]
    """Header entries of a safetensors file; empty for a torch file."""
    layout: str
    """Released layout of the names in the file, from `released.layout_of`."""
    name: str
    """Name of the file in messages."""
    origin: Origin = Origin("a model of ours", "open")
    """Training code that the file comes from, as far as its names show."""
    about: About = About("a model of ours")
    """Description of the file: its kind, which of several models was chosen, and which tensors were left out."""
    described: Mapping[str, Any] = {}
    """Settings from the config.json beside the file (heads, norm_eps, mean, std, ...), from `hugging_face.describe`."""

    @property
    def is_reid(self) -> bool:
        """Whether the file has a batch-norm neck, so that `load_reid` can load it as a re-ID model."""
        return "bottleneck.weight" in self.tensors


def read_metadata(source: Source) -> dict[str, str]:
    """Header entries of a safetensors file; empty for a torch file."""
    return read_header(read_source(source))


def read_checkpoint(source: Source | ModelFile | Checkpoint, weights: str = "") -> Checkpoint:
    """Read a model file, our own or a foreign one, or a folder that contains one (possibly sharded).

    Supports safetensors and torch files of plain tensors: training checkpoints of DINO, DINOv2 and MoCo v3, MAE's encoder,
    bare backbones, the supervised re-ID model, Cluster Contrast's model, ViTs of timm and torch hub, and Hugging Face's ViT and
    DINOv2. Wrappers around them are removed (`state_dict`, `module.`, `model.`, `backbone.`, `base.`, `encoder_q.`, ...).

    Args:
        source: bytes, path or ModelFile. A Checkpoint is returned unchanged.
        weights: which of several models to read, e.g. "student". If empty, the teacher is preferred to the student, and MoCo's
            trained encoder to the momentum encoder.

    Raises Unsaid if the file has several models and no such rule applies, and ValueError with the file's name if it cannot be
    read.
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
