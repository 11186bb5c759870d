"""Map the cameras of a data set to rows of a backbone's camera embeddings (TransReID's SIE, arXiv 2102.04378, section 3.3).

A table lists the camera number of each row; None or -1 marks a row of another data set.
"""

from collections.abc import Sequence

import numpy as np

from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.storage.location import Location

Table = Sequence[int | None]


def cameras_of(location: Location, splits: Sequence[str]) -> list[int]:
    """Camera numbers of the images of `splits` (empty: all images), ascending. Raises UserError if one is unknown (-1)."""
    wanted: Sequence[str | None] = [split for split in splits if read_manifest(location).splits.get(split)] if splits else [None]
    numbers = np.concatenate([read_rows(location, ["camid"], split=split)["camid"].to_numpy() for split in wanted])
    unknown = int((numbers < 0).sum())
    if unknown:
        raise UserError(
            f"{unknown} of {len(numbers)} images of {location.uri}{_of(splits)} have no camera, and a model with "
            "camera embeddings needs one for each: ingest the set with its cameras, or take a model without"
        )
    return [int(number) for number in np.unique(numbers)]


def rows_of(camids: np.ndarray, table: Table, where: str) -> np.ndarray:
    """Row int64 (N,) of the camera of each image. Raises UserError that names the cameras without a row.

    camids: int (N,); where: name of the images, for the message.
    """
    places = {camera: row for row, camera in enumerate(table) if camera is not None and camera >= 0}
    unknown = sorted({int(camera) for camera in camids} - places.keys())
    if unknown:
        raise UserError(
            f"{where} has cameras {_list(unknown)}, of which the model has no embedding: it was trained with cameras "
            f"{_list(sorted(places))}. Take images of these cameras, or a model without camera embeddings"
        )
    return np.array([places[int(camera)] for camera in camids], np.int64)


def require_cameras(
    table: Table | None, num_cameras: int, model: str, location: Location, splits: Sequence[str], section: str = "load"
) -> None:
    """Check that every image of `splits` is from a camera that the model knows. Raises UserError if not.

    Does nothing for a model without camera embeddings (num_cameras 0). section: name of the load options, for the message.
    """
    if not num_cameras:
        return
    if table is None:
        raise UserError(
            f"{model} has embeddings of {num_cameras} cameras and does not say which cameras they stand for. Give "
            f"{section}.cameras=[...], the camera numbers of the data in the order of its rows (for Market-1501 "
            "[1,2,3,4,5,6])"
        )
    rows_of(np.array(cameras_of(location, splits)), table, f"{location.uri}{_of(splits)}")


def _of(splits: Sequence[str]) -> str:
    return f" (split {', '.join(splits)})" if splits else ""


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
