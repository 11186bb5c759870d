"""Export a model for use by others: safetensors, a folder for timm, ONNX, or the layouts of the published code.

  python -m platform.export checkpoint=runs/supervised output=exports/supervised
  python -m platform.export checkpoint=runs/supervised output=s3://bucket/exports/model formats=[timm,onnx,released]

checkpoint: a run folder of platform.pretrain or platform.finetune, or a checkpoint file, written by this platform or released by
others. load.* supplies what the file does not say (load.heads=12); the export contains it. Each format gets its own folder below
output, with a README.md that describes the model and its use:
  safetensors  model.safetensors for `reidssl.models.weights.load_vit` and `load_reid`, with a config.json for model hubs
  timm         model.safetensors and config.json for timm.create_model("local-dir:...") (projection stem only)
  torch        a folder for torch.hub.load(..., source="local"): either stem, with torch, timm and safetensors but without reidssl
  onnx         model.onnx: any batch size, uint8 in, normalized feature out; checked in onnxruntime (needs the onnx extra)
  released     torch files that the published code reads, and a config.json with what those layouts cannot hold
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("export")

import json
from typing import Any

import safetensors.torch

from platform.engine.errors import UserError
from platform.engine.inference.models import BEST, LoadedModel, load_model, model_file
from platform.engine.runs.command import command_of
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.runtime.terminal import say
from platform.engine.schemas.export_settings import ExportConfig
from platform.engine.storage.location import Location, StorageConfig, open_storage
from reidssl.models.exported import Embedder, onnx_bytes, timm_config, timm_state_dict, torch_bytes
from reidssl.models.hub import hub_files
from reidssl.models.hugging_face import describing
from reidssl.models.released import released_checkpoint
from reidssl.models.weights import model_bytes, weights_hash

METRICS = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}


def main(config: ExportConfig) -> list[str]:
    """Write every format. Returns the names of the written files, relative to output.

    Raises UserError if the model cannot be loaded or has no place in one of the formats, or if a format's folder has files of
    another model; then nothing is written.
    """
    for name in ("checkpoint", "output"):
        if not getattr(config, name):
            raise UserError(f"{name} is empty: give checkpoint=<run folder or checkpoint> and output=<folder>")
    model = load_model(config.checkpoint, config.storage, config.load)
    say(f"export: {config.checkpoint}: {model.report}")
    (model.reid or model.backbone).cpu()
    output = open_storage(config.output, config.storage).prepare_output()
    about = facts(config.checkpoint, config.storage, model)
    # Build all formats in memory first: if one fails, no partial export is left behind.
    files: dict[str, bytes] = {}
    for name in config.formats:
        try:
            made = WRITERS[name](model)
        except (ValueError, ImportError, RuntimeError) as error:
            raise UserError(f"formats={name}: {error}") from None
        card = model_card(name, sorted(made), about)
        files |= {f"{name}/{file}": data for file, data in {**made, "README.md": card.encode()}.items()}
    for name in config.formats:
        there = [entry.name for entry in (output / name).list(recursive=False) if not entry.name.startswith(".")]
        foreign = [file for file in there if f"{name}/{file}" not in files]
        if foreign:  # of another model: config.json in the same folder would say wrong facts about it
            raise UserError(f"{(output / name).uri} has {', '.join(sorted(foreign))} of another export: choose another output")
    for file, data in files.items():
        (output / file).write_bytes(data)
    say(f"export: {config.checkpoint} -> {output.uri}: {', '.join(sorted(files))}")
    return sorted(files)


def as_safetensors(model: LoadedModel) -> dict[str, bytes]:
    """The file of this platform, with the metadata of the loaded file."""
    metadata: dict[str, Any] = {"loaded": model.about.as_dict(), **model.metadata}
    metadata |= {"mean": model.mean, "std": model.std, "neck": model.neck}
    if model.cameras is not None:
        metadata["cameras"] = model.cameras
    return {"model.safetensors": model_bytes(model.reid or model.backbone, metadata), "config.json": description(model)}


def as_timm(model: LoadedModel) -> dict[str, bytes]:
    """The files that timm.create_model reads from a folder or from the Hugging Face hub."""
    tensors = timm_state_dict(model.reid or model.backbone, model.neck)
    config = json.dumps(timm_config(model.backbone, model.mean, model.std), indent=2)
    return {"model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}), "config.json": config.encode()}


def as_torch(model: LoadedModel) -> dict[str, bytes]:
    """The folder for torch.hub."""
    return hub_files(model.reid or model.backbone, model.mean, model.std, model.neck)


def as_onnx(model: LoadedModel) -> dict[str, bytes]:
    """One graph from pixels to the retrieval feature."""
    return {"model.onnx": onnx_bytes(Embedder(model.reid or model.backbone, model.mean, model.std, model.neck))}


def as_released(model: LoadedModel) -> dict[str, bytes]:
    """Every published layout that the parts of the model can fill, and a config.json for this platform."""
    whole = model.reid or model.backbone
    layouts = ["dino", "dino_teacher"]
    if model.reid:
        layouts.append("reid" if model.reid.num_classes else "cluster_contrast")
    files = {f"{name}.pth": torch_bytes(released_checkpoint(whole.state_dict(), name)) for name in layouts}
    return files | {"config.json": description(model)}  # the published layouts cannot hold what it says


def description(model: LoadedModel) -> bytes:
    """A config.json with heads, normalization and cameras, in the form of model hubs. The programs read it beside a file."""
    load = {
        "mean": model.mean,
        "std": model.std,
        "neck": model.neck if model.reid else "",
        "cameras": [-1 if camera is None else camera for camera in model.cameras or ()],
    }
    return json.dumps(describing(model.backbone.config, load), indent=1).encode()


WRITERS = {"safetensors": as_safetensors, "timm": as_timm, "torch": as_torch, "onnx": as_onnx, "released": as_released}


def facts(uri: str, storage: StorageConfig, model: LoadedModel) -> dict[str, Any]:
    """Rows of the model card: the architecture, how the model was trained, and its results if the run has them."""
    config = model.backbone.config
    stride = f", stride {config.stride}" if config.stride not in (0, config.patch_size) else ""
    found: dict[str, Any] = {
        "model": f"vision transformer, width {config.width}, depth {config.depth}, {config.heads} heads, patch "
        f"{config.patch_size}{stride}, stem {config.stem}",
        "image size (height x width)": "{} x {}".format(*config.image_size),
        "mean, std": f"{model.mean}, {model.std}",
        "feature": f"{model.neck} the neck, L2-normalized" if model.reid else "class token after the last norm, L2-normalized",
        "weights": weights_hash(model.reid or model.backbone)[:12],
    }
    if model.reid and model.reid.jigsaw:
        parts = model.reid.jigsaw.config.parts
        found["feature"] += f"; that of the whole image and {parts} local ones (JPM, arXiv 2102.04378), divided by {parts}"
    if model.about.as_dict()["assumed"]:
        found["assumed, since the file did not say it"] = ", ".join(model.about.as_dict()["assumed"])
    if model.cameras is not None:
        found["cameras"] = "one embedding for each of " + ", ".join(str(c) for c in model.cameras if c is not None)
    # Last path component only: the card is public, the paths of the training machine are private.
    for key in ("setting", "checkpoint", "source_set", "target_set"):
        if model.metadata.get(key):
            found[key] = model.metadata[key].rstrip("/").rpartition("/")[2]
    file = model_file(uri, storage)
    results, command = _results(file, found["weights"]), command_of(file.parent)
    found |= {"results on the target": results} if results else {}
    return found | ({"made by": f"`{command}`"} if command else {})


def _results(model: Location, weights: str) -> str:
    """Metrics of these weights in the summary of the run folder that holds the model file; "" if there are none."""
    file = model.parent / SUMMARY
    summary = file.read_json() if file.exists() else None
    if not isinstance(summary, dict):  # another library's
        return ""
    row = summary.get("best") if model.name == BEST else summary
    # A file that was put there later was not judged. The summary of a fine-tuning run has no hash of its best weights.
    unknown = weights if model.name == BEST else None
    if not isinstance(row, dict) or row.get("weights", unknown) != weights:
        return ""
    return ", ".join(f"{name} {row[key]:.1%}" for key, name in METRICS.items() if key in row)


USAGE = {
    "safetensors": """from reidssl.models.weights import load_vit   # load_reid for the neck and classifier

vit = load_vit("model.safetensors")
features = vit(images)   # float (B, 3, height, width), normalized with the mean and std above""",
    "timm": """import timm

model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = torch.nn.functional.normalize(model(transform(image)[None]), dim=-1)""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(features,) = session.run(["embedding"], {"images": pixels})   # uint8 (B, 3, height, width), RGB""",
    "torch": """import torch   # and timm and safetensors; reidssl is not needed

model = torch.hub.load("<this folder>", "reid", source="local")
features = model(pixels)   # uint8 (B, 3, height, width), RGB; torch.hub.load(..., "vit", ...) is the backbone alone""",
    "released": """\
# dino.pth: the backbone under the names of the published code (TransReID-SSL); dino_teacher.pth: the same as in a
# DINO training checkpoint; reid.pth, cluster_contrast.pth: with the neck
state_dict = torch.load("dino.pth", weights_only=True)""",
}


def model_card(name: str, files: list[str], about: dict[str, Any]) -> str:
    """Text of README.md, with the YAML header that model hubs read."""
    library = {"timm": "timm", "onnx": "onnx", "torch": "pytorch"}.get(name, "reidssl")
    rows = "\n".join(f"| {key} | {value} |" for key, value in about.items())
    return f"""---
library_name: {library}
pipeline_tag: image-feature-extraction
license: other
license_name: terms-of-the-training-data
tags: [person-re-identification, self-supervised-learning, vision-transformer]
---
# Person re-identification model

Features of person crops: images of the same person have a high cosine similarity. Made with reidssl, an implementation of
*Self-Supervised Pre-Training for Transformer-Based Person Re-Identification* (arXiv 2111.12084).

| | |
|---|---|
{rows}

Files: {", ".join(files)}. Images are resized to the size above (bicubic), without keeping their aspect ratio.

```python
{USAGE[name]}
```

The weights carry the terms of the data that they were trained on: LUPerson, Market-1501 and MSMT17 allow research only.
Recognizing people touches their rights; whoever uses this model answers for a lawful purpose.
"""
