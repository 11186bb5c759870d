"""The pictures of the report: sample images by score, ranking galleries, attention maps.

Only row groups with a needed image are read, so the cost hardly depends on the size of the data set.
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from markupsafe import Markup

from platform.engine.data.shards import read_rows
from platform.engine.errors import StorageError, UserError
from platform.engine.inference.models import LoadedModel, load_model
from platform.engine.pipeline.results import INITS
from platform.engine.report.contents import DataSet, RunFolder, RunMember
from platform.engine.report.plots.picture_strip import attention_overlay, data_uri, encode, thumbnail
from platform.engine.report.plots.strips import Match, ranking_strip
from platform.engine.report.results import setting_title
from platform.engine.runtime.device import device
from platform.engine.schemas.finetune_settings import SETTINGS
from platform.engine.storage.parquet import from_parquet
from reidssl.augment.reid_augment import normalize
from reidssl.data.decode import DecodeError, decode_image, decode_whole

SAMPLES, QUERIES, ATTENTION_IMAGES = 16, 4, 10
CLUSTERS, CLUSTER_IMAGES = 12, 12
MOST_MODELS = 6  # keeps the page small for folders with many runs
THUMBNAIL_HEIGHT, ATTENTION_HEIGHT = 128, 160


def images_of(data: DataSet, keys: Iterable[str]) -> dict[str, bytes]:
    """Key -> encoded image. Keys that the data set does not have, and undecodable images, are left out. Raises StorageError."""
    wanted = set(keys)
    rows = np.flatnonzero(np.fromiter((key in wanted for key in read_rows(data.location, ["key"])["key"].to_pylist()), bool))
    places: dict[tuple[str, int], list[int]] = defaultdict(list)
    groups = [(entry.name, group, count) for entry in data.manifest.files for group, count in enumerate(entry.row_groups)]
    starts = np.cumsum([0] + [count for _, _, count in groups])
    for row in rows:
        at = int(np.searchsorted(starts, row, side="right")) - 1
        places[groups[at][0], groups[at][1]].append(int(row - starts[at]))
    found: dict[str, bytes] = {}
    for (name, group), inside in places.items():
        read = partial(pq.ParquetFile.read_row_group, i=group, columns=["key", "image"])
        table = from_parquet(data.location / name, read).take(inside)
        for key, image in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
            with suppress(DecodeError):
                decode_whole(image)
                found[key] = image
    return found


def samples(data: DataSet, keys: list[str], scores: np.ndarray, planted: np.ndarray | None) -> dict[str, list[dict[str, Any]]]:
    """Thumbnails of the images with the best scores ("top", best first) and the worst scores ("bottom", worst first).

    scores: float (N,); planted: bool (N,) or None. Raises StorageError.
    """
    order = np.argsort(-scores, kind="stable")
    count = min(SAMPLES, len(order) // 2 or 1)
    chosen = {"top": order[:count], "bottom": order[::-1][:count]}
    images = images_of(data, [keys[row] for rows in chosen.values() for row in rows])
    return {
        side: [
            {
                "key": keys[row],
                "score": float(scores[row]),
                "image": _picture(images[keys[row]]),
                "planted": planted is not None and bool(planted[row]),
            }
            for row in rows
            if keys[row] in images
        ]
        for side, rows in chosen.items()
    }


def clusters(data: DataSet, keys: list[str], labels: np.ndarray) -> list[dict[str, Any]]:
    """{"size", "images"} of some clusters, evenly spread from the largest to the smallest, with some images of each.

    labels: int (N,), -1 for outliers. Raises StorageError.
    """
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    chosen = order[_spread(len(order), CLUSTERS)]
    rows = {int(at): np.flatnonzero(labels == names[at]) for at in chosen}
    shown = {at: own[_spread(len(own), CLUSTER_IMAGES)] for at, own in rows.items()}
    images = images_of(data, [keys[row] for own in shown.values() for row in own])
    return [
        {
            "size": int(sizes[at]),
            "images": [{"key": keys[row], "image": _picture(images[keys[row]])} for row in own if keys[row] in images],
        }
        for at, own in shown.items()
    ]


def _spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the indices 0 .. total - 1, evenly spread, ascending."""
    return np.unique(np.linspace(0, max(total - 1, 0), min(count, total)).astype(int))


def galleries(folder: RunFolder) -> tuple[str, list[dict[str, Any]]]:
    """(setting, queries); each query has the rankings of every initialization of that setting. ("", []) without rankings.

    The setting is the one with the most rankings; between equals, the one that uses the fewest labels.
    """
    rankings: dict[str, dict[RunMember, dict[str, dict[str, Any]]]] = {}
    for setting in reversed(SETTINGS):
        found = {one: _rankings(one, folder.notes) for one in _tuned(folder, setting)}
        rankings[setting] = {one: entries for one, entries in found.items() if entries}
    chosen = max(rankings, key=lambda setting: len(rankings[setting]))  # max returns the first of equals
    return (chosen, _gallery(folder, rankings[chosen])) if rankings[chosen] else ("", [])


def _tuned(folder: RunFolder, setting: str) -> list[RunMember]:
    """At most MOST_MODELS fine-tuning runs of a setting, without the proxy, ordered by initialization."""
    runs = [one for one in folder.of("finetune") if one.setting == setting and not one.name.startswith("proxy/")]
    return sorted(runs, key=lambda one: (INITS.index(one.init) if one.init in INITS else len(INITS), one.name))[:MOST_MODELS]


def _rankings(member: RunMember, notes: list[str]) -> dict[str, dict[str, Any]]:
    file = member.location / "rankings.json"
    try:
        return {entry["query"]: entry for entry in file.read_json()} if file.exists() else {}
    except (StorageError, KeyError, TypeError) as error:
        notes.append(f"The rankings of {member.name} cannot be read: {error}")
        return {}


def _gallery(folder: RunFolder, rankings: dict[RunMember, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    queries = list(next(iter(rankings.values())))
    queries = [queries[at] for at in _spread(len(queries), QUERIES)]
    entries = {query: [(one, found[query]) for one, found in rankings.items() if query in found] for query in queries}
    keys = {key for query, own in entries.items() for _, entry in own for key in (query, *entry["matches"])}
    images: dict[str, bytes] = {}
    if "target" in folder.data:
        try:
            images = images_of(folder.data["target"], keys)
        except StorageError as error:
            folder.notes.append(f"The images of the rankings cannot be read: {error}")
    small = {key: thumbnail(data, THUMBNAIL_HEIGHT) for key, data in images.items()}
    shown = []
    for query, own in entries.items():
        strips = []
        for one, entry in own:
            pairs = zip(entry["matches"], entry["correct"], strict=True)
            matches = [Match(key, small.get(key), bool(right)) for key, right in pairs]
            strips.append(
                {
                    "label": one.init,
                    "right": sum(match.correct for match in matches),
                    "of": len(matches),
                    "strip": Markup(ranking_strip(matches)),
                }
            )
        shown.append({"key": query, "image": data_uri(small[query]) if query in small else "", "strips": strips})
    return shown


def attention_models(folder: RunFolder, setting: str) -> tuple[list[tuple[str, LoadedModel]], dict[str, str]]:
    """([(label, model)] of the models whose attention is shown, {run name: hash of the weights} of the pre-training runs)."""
    models, hashes = [], {}
    for one in filter(lambda run: run.summary is not None, [*folder.of("pretrain")[:MOST_MODELS], *_tuned(folder, setting)]):
        try:
            model = load_model(one.location.uri, folder.location.config)
        except (UserError, StorageError) as error:
            folder.notes.append(f"The model of {one.name} cannot be loaded: {error}")
            continue
        if one.program == "pretrain":
            hashes[one.name] = model.weights
            models.append((f"pre-trained, {one.short_name}", model))
        else:
            models.append((f"{setting_title(one.setting)} from {one.init}", model))
    return models, hashes


def attention_maps(folder: RunFolder, models: list[tuple[str, LoadedModel]]) -> dict[str, Any] | None:
    """{"images": thumbnails, "keys", "rows": [(label, overlays)], "role"} for a few images; None without images or models.

    The images are from the target set, or else from the pre-training set.
    """
    data = folder.data.get("target") or folder.data.get("pretrain")
    if data is None or not models:
        return None
    try:
        split = "query" if "query" in data.manifest.splits else None
        table = read_rows(data.location, ["key", "camid"], split=split)
        places = _spread(table.num_rows, ATTENTION_IMAGES)
        chosen, camids = table["key"].take(places).to_pylist(), table["camid"].to_numpy()[places]
        images = images_of(data, chosen)
        chosen = [key for key in chosen if key in images]
    except StorageError as error:
        folder.notes.append(f"The images of the attention maps cannot be read: {error}")
        return None
    rows = []
    for label, model in models:
        try:
            overlays = _overlays(model, [images[key] for key in chosen], camids)
        except (UserError, ValueError) as error:  # e.g. a camera that the model does not know
            folder.notes.append(f"Attention of {label} cannot be drawn: {error}")
            continue
        rows.append((label, [data_uri(encode(overlay)) for overlay in overlays]))
    thumbnails = [_picture(images[key], ATTENTION_HEIGHT) for key in chosen]
    return {"role": data.role, "keys": chosen, "rows": rows, "images": thumbnails}


@torch.inference_mode()
def _overlays(model: LoadedModel, encoded: list[bytes], camids: np.ndarray) -> list[np.ndarray]:
    images = np.stack([decode_image(data, model.image_size) for data in encoded])
    inputs = normalize(torch.from_numpy(images).to(device()), model.mean, model.std)
    attention = model.backbone.class_attention(inputs, model.camera_rows(camids)).mean(dim=1).float().cpu().numpy()
    grid = model.backbone.config.grid(*model.image_size)
    return [
        attention_overlay(image.transpose(1, 2, 0), own.reshape(grid), ATTENTION_HEIGHT)
        for image, own in zip(images, attention, strict=True)
    ]


def _picture(data: bytes, height: int = THUMBNAIL_HEIGHT) -> str:
    return data_uri(thumbnail(data, height))
