"""A k-NN probe during pre-training, which shows whether the backbone recognizes people or only cameras."""

from typing import Any

import numpy as np
import torch

from platform.engine.data.image_set import ImageSet
from platform.engine.runtime.device import upload
from platform.engine.schemas.training_settings import ProbeConfig
from platform.engine.storage.location import open_storage
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.augment.reid_augment import normalize
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import Vit


class Probe:
    """Evaluates a backbone in eval mode on a small labeled set. Returns {"probe_mAP", "probe_same_camera"}.

    probe_mAP: mAP of cross-camera identity retrieval, in [0, 1]. probe_same_camera: share of nearest neighbors from the same
    camera, in [0, 1]. If it rises while the mAP does not, the model learns backgrounds. A figure that the labels do not allow is
    left out: the first if nobody is in two cameras, the second if fewer than two images have a known camera.
    """

    def __init__(
        self, config: ProbeConfig, model: VitConfig, augment: MultiCropConfig, storage: Any, max_corrupt_share: float
    ) -> None:
        self.images = ImageSet(
            open_storage(config.uri, storage), [config.split], model.image_size, max_corrupt_share=max_corrupt_share
        )
        self.mean, self.std = augment.mean, augment.std

    @torch.no_grad()
    def __call__(self, backbone: Vit) -> dict[str, float]:
        from reidssl.metrics.ranking import leave_one_out, same_camera_share  # compiles on import

        features = torch.cat(
            [backbone(normalize(upload(batch), self.mean, self.std)).cpu() for batch in self.images.batches(128)]
        )
        pids, camids = np.asarray(self.images.pids), np.asarray(self.images.camids)
        found = {}
        if has_matches(pids, camids):
            found["probe_mAP"] = float(leave_one_out(features, pids, camids).mAP)
        if (camids != -1).sum() > 1:
            found["probe_same_camera"] = float(same_camera_share(features, camids))
        return found


def has_matches(pids: np.ndarray, camids: np.ndarray) -> bool:
    """Whether an image has a true match among the others: the same person in another camera, or one camera is unknown (-1)."""
    _, person, of_person = np.unique(pids, return_inverse=True, return_counts=True)
    _, place, in_camera = np.unique(person * 2**32 + camids, return_inverse=True, return_counts=True)
    junk = np.where(camids == -1, 1, in_camera[place])  # including the image itself
    return bool(((pids != -1) & (of_person[person] > junk)).any())
