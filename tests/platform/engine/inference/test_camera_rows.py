"""Camera numbers of data sets as rows of camera embeddings, and the refusal of models whose cameras do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from platform.engine.data.image_set import ImageSet
from platform.engine.errors import UserError
from platform.engine.finetune.camera_plan import plan_cameras
from platform.engine.inference.camera_rows import cameras_of, rows_of
from platform.engine.inference.models import LoadConfig, load_model
from platform.engine.storage.location import StorageConfig
from reidssl.augment.reid_augment import normalize
from reidssl.models.reid import ReidModel
from reidssl.models.released import released_checkpoint
from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model
from tests.fixtures_runs import embed_all, finetune_config
from tests.tiny import TINY_VIT

STORAGE = StorageConfig()
SIE = replace(TINY_VIT, num_cameras=3)


@pytest.fixture
def sie(tmp_path):
    """A model with embeddings of cameras 3, 1 and 2, in this order, that uses the feature after the neck."""
    model = ReidModel(build_vit(SIE, seed=1), num_classes=3).eval()
    metadata = {"cameras": [3, 1, 2], "neck": "before", "mean": [0.5] * 3, "std": [0.5] * 3}
    save_model(model, metadata, tmp_path / "model.safetensors")
    return tmp_path, model


def test_rows_follow_the_table_and_unknown_cameras_are_named():
    assert rows_of(np.array([3, 1, 3, 7]), [None, 7, 3, 1], "here").tolist() == [2, 3, 2, 1]
    with pytest.raises(UserError, match=r"here has cameras 2, 9, of which the model has no embedding: .* cameras 1, 3\."):
        rows_of(np.array([9, 1, 2]), [None, 3, 1], "here")


def test_cameras_of_a_set(tiny_labeled, tiny_shards):
    assert cameras_of(tiny_labeled, ["train"]) == [1, 2, 3] == cameras_of(tiny_labeled, [])
    with pytest.raises(UserError, match=r"90 of 90 images of .*tiny have no camera, .*ingest the set with its cameras"):
        cameras_of(tiny_shards, [])


@torch.no_grad()
def test_features_use_the_row_of_each_images_camera(sie, tiny_labeled):
    folder, model = sie
    loaded, images = load_model(str(folder), STORAGE), ImageSet(tiny_labeled, ["query"], (64, 32))
    found = embed_all(loaded, images, batch=5)
    rows = torch.tensor([{3: 0, 1: 1, 2: 2}[int(camera)] for camera in images.camids])
    inputs = normalize(images.batch(np.arange(len(images))), [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(found, F.normalize(model(inputs, rows).before, dim=1), atol=1e-5, rtol=0)
    assert not torch.allclose(found, F.normalize(model(inputs, rows.roll(1)).before, dim=1), atol=1e-3)
    loaded.require_cameras(tiny_labeled, ("query", "gallery"))


def test_a_model_that_does_not_say_its_cameras_is_refused_before_work(tmp_path, sie, tiny_labeled, tiny_shards):
    folder, model = sie
    torch.save(released_checkpoint(model.state_dict(), "reid"), tmp_path / "released.pth")
    loaded = load_model(str(tmp_path / "released.pth"), STORAGE, LoadConfig(heads=2))
    with pytest.raises(UserError, match=r"embeddings of 3 cameras and does not say which.*load_target.cameras=\[...\]"):
        loaded.require_cameras(tiny_labeled, ("query",), "load_target")
    told = load_model(str(tmp_path / "released.pth"), STORAGE, LoadConfig(heads=2, cameras=[3, 1, 2]))
    told.require_cameras(tiny_labeled, ("query",))
    assert list(told.cameras) == [3, 1, 2]
    with pytest.raises(UserError, match=r"split query\) has cameras 1, 2, 3, of which .* cameras 4, 5, 6"):
        load_model(str(tmp_path / "released.pth"), STORAGE, LoadConfig(heads=2, cameras=[4, 5, 6])).require_cameras(
            tiny_labeled, ("query",)
        )
    with pytest.raises(UserError, match="have no camera"):
        load_model(str(folder), STORAGE).require_cameras(tiny_shards, ())


def plan(target, output, *overrides, checkpoint=""):
    config = finetune_config(
        target, output, *([f"checkpoint={checkpoint}"] if checkpoint else ["model.image_size=[64,32]"]), *overrides
    )
    loaded = load_model(str(checkpoint), STORAGE, config.load) if checkpoint else None
    return plan_cameras(config, loaded)


def test_the_plan_of_a_run(tmp_path, sie, tiny_labeled, tiny_source, tiny_backbone):
    assert plan(tiny_labeled, tmp_path) is None and plan(tiny_labeled, tmp_path, checkpoint=tiny_backbone) is None
    new = plan(tiny_labeled, tmp_path, "model.num_cameras=3", checkpoint=tiny_backbone)
    assert new.fresh and list(new.target) == [1, 2, 3] and new.rows_for(tiny_labeled.uri, np.array([3, 1])).tolist() == [2, 0]
    with pytest.raises(UserError, match=r"model.num_cameras must be the number of cameras .*, 3: got 4.*3 \(1, 2, 3\)"):
        plan(tiny_labeled, tmp_path, "model.num_cameras=4")
    kept = plan(tiny_labeled, tmp_path, checkpoint=sie[0])
    assert not kept.fresh and list(kept.target) == [3, 1, 2]
    both = plan(
        tiny_labeled, tmp_path, "setting=uda", f"source_set={tiny_source.uri}", "model.num_cameras=6", checkpoint=tiny_backbone
    )
    assert list(both.target) == [None] * 3 + [1, 2, 3] and "new embeddings of 6 cameras" in str(both)
    assert both.rows_for(tiny_source.uri, np.array([2])).tolist() == [1]
    with pytest.raises(UserError, match=r"cannot be those of two data sets \(setting=uda\): model.num_cameras=6 starts new ones"):
        plan(tiny_labeled, tmp_path, "setting=uda", f"source_set={tiny_source.uri}", checkpoint=sie[0])


def test_init_with_other_cameras_needs_a_word(tmp_path, tiny_labeled):
    for cameras, words in (([7, 8, 9], r"of \[7, 8, 9\]"), (None, "does not say of which")):
        folder = tmp_path / str(bool(cameras))
        folder.mkdir()
        save_model(build_vit(SIE), {"cameras": cameras} if cameras else {}, folder / "backbone.safetensors")
        with pytest.raises(UserError, match=rf"has embeddings of 3 cameras and {words}.*model.num_cameras=3 starts"):
            plan(tiny_labeled, tmp_path, checkpoint=folder)
        assert plan(tiny_labeled, tmp_path, "model.num_cameras=3", checkpoint=folder).fresh
