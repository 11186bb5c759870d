"""Rankings of the images of a data set: scores, a published list, the images of a selection, or chance."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from platform.engine.data.parts import PARTS
from platform.engine.data.shards import Manifest
from platform.engine.errors import UserError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.runtime.terminal import say
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import read_columns
from platform.engine.stream.units import INDEX, selection_record
from reidssl.seeding import CHOICE_STREAM, sample_seeds, uniforms
from reidssl.selection.matching import match_entries
from reidssl.selection.published import load_published_list

SELECTION = "manifest.json"


@dataclass(frozen=True)
class Ranking:
    """An order of the images of a data set."""

    kind: str
    """"scores", "list", "selection" or "random"."""
    values: np.ndarray
    """float64 (N,), higher is better; NaN: not ranked (cannot be decoded, or not named by the list or the selection)."""
    about: dict[str, Any] = field(default_factory=dict)
    """Facts for the summary."""

    @property
    def ranked(self) -> np.ndarray:
        """int64, ascending positions of the ranked images."""
        return np.flatnonzero(~np.isnan(self.values))

    @property
    def record(self) -> dict[str, Any]:
        """Kind and facts, for the summary."""
        return {"kind": self.kind, **self.about}


def random_ranking(seed: int, keys: list[str]) -> Ranking:
    """An order by chance, a function of the seed and the keys, and independent of the augmentation with the same seed."""
    return Ranking("random", uniforms(sample_seeds(seed, 0, keys), 1, stream=CHOICE_STREAM)[:, 0], {"seed": seed})


def any_ranking(place: Location, data: str, manifest: Manifest, keys: list[str]) -> Ranking:
    """The ranking at `place`: the file of a list, or a folder written by platform.select or platform.score.

    Arguments and errors as in the functions below. Raises UserError for a folder of another kind.
    """
    if place.is_file():
        return listed_ranking(place, keys)
    if (place / INDEX).exists():
        return selected_ranking(place, data, manifest, keys)
    if (place / PARTS).exists():
        return scored_ranking(place, data, manifest, keys)
    raise UserError(
        f"{place.uri} cannot be compared: it is neither a published list (a file), nor a folder written by platform.score or "
        "platform.select"
    )


def scored_ranking(folder: Location, data: str, manifest: Manifest, keys: list[str]) -> Ranking:
    """The scores in a folder of platform.score.

    Args:
        data, manifest, keys: name, manifest and keys of the data set.

    Raises UserError for missing, foreign or non-finite scores.
    """
    if not (folder / SUMMARY).exists():
        raise UserError(f"{folder.uri} holds no finished scores: run platform.score to its end first")
    about = read_record(folder / SUMMARY, "data_checksum", str, "give the folder that platform.score wrote as scores")
    if about["data_checksum"] != manifest.checksum:
        raise UserError(
            f"the scores in {folder.uri} belong to another data set than {data}: score this one (their "
            f"checksum {about['data_checksum'][:12]}, this one's {manifest.checksum[:12]})"
        )
    table = read_scores(folder, manifest)
    if table["key"].to_pylist() != keys:
        raise UserError(f"the keys in {folder.uri} are not those of {data}: score this data set again")
    scores = table["score"].to_numpy().astype(np.float64)
    missing = np.isnan(scores) & table["score"].is_valid().to_numpy()  # null is an undecodable image, NaN is an error
    if missing.any():
        raise UserError(
            f"{folder.uri}: {int(missing.sum())} of {len(keys)} scores are NaN, the first that of "
            f"'{keys[int(missing.argmax())]}': the proxies gave no finite feature there; score again with "
            "other proxies"
        )
    if np.isnan(scores).all():
        raise UserError(f"none of the {len(keys):,} images of {data} has a score: none of them could be decoded")
    names = ("measure", "k", "search", "group", "source_proxy", "target_proxy", "proxies")
    return Ranking("scores", scores, {"uri": folder.uri} | {name: about[name] for name in names if name in about})


def selected_ranking(folder: Location, data: str, manifest: Manifest, keys: list[str]) -> Ranking:
    """The images of a selection in its order. Raises UserError if it was made from another data set, or is damaged."""
    about = selection_record(folder, data, manifest)
    table = read_columns(folder / INDEX, ["key", "score"])
    places = {key: place for place, key in enumerate(keys)}
    values = np.full(len(keys), np.nan)
    with refused_as_user_error(folder.uri):
        try:
            chosen = [places[key] for key in table["key"].to_pylist()]
        except KeyError as error:
            raise ValueError(f"it names {error}, which is no image of {data}: run platform.select again") from None
    values[chosen] = table["score"].to_numpy() * (-1 if about.get("inverse") else 1)
    return Ranking("selection", values, {"uri": folder.uri, "by": about.get("by", {}).get("kind"), "images": len(chosen)})


def listed_ranking(file: Location, keys: list[str]) -> Ranking:
    """The order of a published list.

    Raises UserError if the file is anything but a pickled list of strings (in particular if the pickle holds code), if it names
    an image twice, or if it names no image of this data set.
    """
    content = file.read_bytes()
    with refused_as_user_error(file.uri):
        entries = load_published_list(content)
        found = match_entries(entries, keys)
    unlisted = int((found.places < 0).sum())
    if unlisted == len(keys):
        raise UserError(
            f"none of the {len(keys):,} keys is in {file.uri} (first key '{keys[0]}', first entry '{entries[0]}'): the "
            "list belongs to another data set"
        )
    for side, prefix in (("list has", found.entry_prefix), ("keys have", found.key_prefix)):
        if prefix:
            say(f"select: the {side} '{prefix}' before the paths; it is left out")
    if found.absent:
        shown = ", ".join(f"'{entry}'" for entry in found.absent[:3])
        say(f"select: {len(found.absent):,} of {len(entries):,} entries of the list name no image of the data set, e.g. {shown}")
    about = {
        "uri": file.uri,
        "sha256": hashlib.sha256(content).hexdigest(),
        "entries": len(entries),
        "absent_from_data": len(found.absent),
        "absent_from_list": unlisted,
    }
    return Ranking("list", np.where(found.places < 0, np.nan, -found.places.astype(np.float64)), about)


@contextmanager
def refused_as_user_error(name: str) -> Iterator[None]:
    """Context manager: turns a ValueError of the library into a UserError that names the input `name`."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
