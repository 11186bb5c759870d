"""The assignment of cameras to rows of the camera embeddings in a fine-tuning run."""

from dataclasses import dataclass

import numpy as np

from platform.engine.errors import UserError
from platform.engine.inference.camera_rows import Table, cameras_of, rows_of
from platform.engine.inference.models import LoadedModel
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.storage.location import open_storage


@dataclass(frozen=True)
class CameraPlan:
    """Rows of the camera embeddings: first the cameras of the source (UDA only), then those of the target."""

    tables: dict[str, Table]
    """Data set URI -> the camera of each row; None for rows of the other data set."""
    target: Table
    """The table of the target set, which is stored with the model."""
    fresh: bool
    """True: new embeddings; False: the embeddings of the checkpoint are used further."""

    @property
    def rows(self) -> int:
        """Number of camera embeddings."""
        return len(self.target)

    def rows_for(self, uri: str, camids: np.ndarray) -> np.ndarray:
        """Row int64 (N,) of each image of a data set, from its camera. Raises UserError for a camera that was not in training."""
        return rows_of(camids, self.tables[uri], uri)

    def __str__(self) -> str:
        shown = "; ".join(
            f"{uri}: {', '.join(str(camera) for camera in table if camera is not None)}" for uri, table in self.tables.items()
        )
        return f"{'new' if self.fresh else 'the given'} embeddings of {self.rows} cameras ({shown})"


def plan_cameras(config: FinetuneConfig, init: LoadedModel | None) -> CameraPlan | None:
    """The camera plan of a run; None without camera embeddings.

    model.num_cameras above 0 asks for new embeddings; it must equal the number of cameras of the training images. With 0, the
    embeddings of `init` are used, if it has any; they must cover the cameras of the target. Raises UserError if these conditions
    do not hold, or if query or gallery have a camera that the training images do not have.
    """
    wanted, has = config.model.num_cameras, init.backbone.config.num_cameras if init else 0
    if not wanted and not has:
        return None
    sets = [config.source_set, config.target_set] if config.setting == "uda" else [config.target_set]
    found = {uri: cameras_of(open_storage(uri, config.storage), ["train"]) for uri in sets}
    if not wanted:
        assert init is not None
        total = sum(map(len, found.values()))
        new = f"model.num_cameras={total} starts new ones for the {total} cameras of the training images"
        if config.setting == "uda":
            raise UserError(
                f"{config.checkpoint} has embeddings of {has} cameras, which cannot be those of two data sets "
                f"(setting=uda): {new}"
            )
        unknown = set(found[config.target_set]) - set(init.cameras or ())
        if init.cameras is None or unknown:
            knows = "does not say of which" if init.cameras is None else f"of {list(init.cameras)}"
            raise UserError(
                f"{config.checkpoint} has embeddings of {has} cameras and {knows}, {config.target_set} has cameras "
                f"{found[config.target_set]}: {new}" + ("" if init.cameras else "; load.cameras=[...] says which they are")
            )
        plan = CameraPlan({config.target_set: init.cameras}, init.cameras, fresh=False)
    else:
        if wanted != sum(map(len, found.values())):
            shown = "; ".join(f"{uri}: {len(cameras)} ({', '.join(map(str, cameras))})" for uri, cameras in found.items())
            raise UserError(
                f"model.num_cameras must be the number of cameras of the training images, "
                f"{sum(map(len, found.values()))}: got {wanted}. Cameras of the train splits: {shown}"
            )
        tables: dict[str, Table] = {}
        for uri in sets:
            tables[uri] = [camera if each == uri else None for each in sets for camera in found[each]]
        plan = CameraPlan(tables, tables[config.target_set], fresh=True)
    location = open_storage(config.target_set, config.storage)
    rows_of(np.array(cameras_of(location, ["query", "gallery"])), plan.target, f"{location.uri} (split query, gallery)")
    return plan
