"""A k-NN probe during pre-training, which shows whether the backbone recognizes people or only cameras."""

from typing import Any

import numpy as np
import torch

from platform.engine.data.image_set import ImageSet
from platform.engine.data.people import each_apart, people
from platform.engine.data.shards import read_manifest
from platform.engine.runtime.device import upload
from platform.engine.schemas.training_settings import ProbeConfig
from platform.engine.storage.location import open_storage
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.augment.reid_augment import normalize
from reidssl.metrics.inputs import have_matches
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit

MAP, SAME_CAMERA = "probe_mAP", "probe_same_camera"


class Probe:
    """Evaluates a backbone in eval mode on a small labeled set. Returns {"probe_mAP", "probe_same_camera"}.

    probe_mAP: mAP of cross-camera identity retrieval, in [0, 1]; distractors are in the gallery only. probe_same_camera: share of
    nearest neighbors from the same camera, in [0, 1]. If it rises while the mAP does not, the model learns backgrounds.
    A figure that the labels do not define is left out; `left_out` has the reason for each of them.
    """

    def __init__(
        self, config: ProbeConfig, model: VitConfig, augment: MultiCropConfig, storage: Any, max_corrupt_share: float
    ) -> None:
        root = open_storage(config.uri, storage)
        self.images = ImageSet(root, [config.split], model.image_size, max_corrupt_share=max_corrupt_share)
        self.people = each_apart(people(read_manifest(root), self.images.pids, self.images.split))
        self.mean, self.std = augment.mean, augment.std
        self.left_out = undefined(self.people, self.images.camids)
        """Name of a figure -> why it is not defined."""

    @torch.no_grad()
    def __call__(self, backbone: Vit) -> dict[str, float]:
        from reidssl.metrics.ranking import leave_one_out, same_camera_share  # compiles on import

        if {MAP, SAME_CAMERA} <= self.left_out.keys():
            return {}
        features = torch.cat(
            [backbone(normalize(upload(batch), self.mean, self.std)).cpu() for batch in self.images.batches(128)]
        )
        found = {}
        if MAP not in self.left_out:
            found[MAP] = float(leave_one_out(features, self.people, self.images.camids).mAP)
        if SAME_CAMERA not in self.left_out:
            found[SAME_CAMERA] = float(same_camera_share(features, self.images.camids))
        return found

    def remarks(self) -> list[str]:
        """A line for the log about each figure that is left out."""
        where = f"{self.images.location.uri}, split {' or '.join(self.images.splits)}"
        return [f"note: there is no {name} of {where}: {reason}" for name, reason in self.left_out.items()]


def undefined(numbers: np.ndarray, camids: np.ndarray) -> dict[str, str]:
    """The figures that these labels do not define, each with the reason.

    numbers: int (N,), equal for images of one person, -1: unlabeled; camids: int (N,), -1: unknown.
    """
    found, cameras = {}, np.unique(camids[camids != -1])
    if not have_matches(numbers, camids).any():
        found[MAP] = "no image has another image of the same person in another camera"
    if len(cameras) < 2:
        known = "all its images with a known camera are from one" if len(cameras) else "none of its images has a camera (camid)"
        found[SAME_CAMERA] = f"{known}, and the figure compares cameras"
    return found
