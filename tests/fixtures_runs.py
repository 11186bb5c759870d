"""A tiny backbone and models fine-tuned from it, made once per session and shared by the tests of the programs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from platform.engine.data.image_set import ImageSet
from platform.engine.inference.models import LoadedModel
from platform.engine.storage.location import Location, open_storage
from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model
from reidssl.synthetic.people import SyntheticConfig
from tests.fixtures_shards import write_data_set
from tests.tiny import FINETUNE, FITTING, IMAGENET, TINY_VIT


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A folder like that of a pre-training run, with a backbone of random weights."""
    return backbone_in(tmp_path_factory.mktemp("backbone"), seed=3)


@pytest.fixture(scope="session")
def other_backbone(tmp_path_factory) -> Path:
    """A folder with a backbone other than `tiny_backbone`, such as the target proxy of a score."""
    return backbone_in(tmp_path_factory.mktemp("backbone"), seed=4)


def backbone_in(folder: Path, seed: int) -> Path:
    save_model(build_vit(TINY_VIT, seed=seed), {"kind": "backbone", **IMAGENET}, folder / "backbone.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Location:
    """A labeled source set for UDA: 10 people in 3 cameras, 64 x 32."""
    location = open_storage(str(tmp_path_factory.mktemp("data") / "source"))
    config = SyntheticConfig(
        image_size=(64, 32), source_identities=10, source_cameras=3, cameras_per_identity=3, images_per_camera=2
    )
    write_data_set(location, config, "source", [60], row_group_rows=16)
    return location


@torch.inference_mode()
def embed_all(model: LoadedModel, images: ImageSet, batch: int = 256) -> Tensor:
    """Features of an ImageSet in order, without Ray: float32 (N, D) on the CPU."""
    parts = enumerate(images.batches(batch))
    return torch.cat([model.embed(part, images.camids[at * batch :][:batch]).float().cpu() for at, part in parts])


def finetune_config(target: Location, output, *overrides: str):
    """The configuration of a tiny fine-tuning run, composed as by the command line."""
    from platform.engine.config.compose import load_config
    from platform.finetune import FinetuneConfig

    return load_config(FinetuneConfig, "finetune", [f"target_set={target.uri}", f"output={output}", *FINETUNE, *overrides])


@pytest.fixture(scope="session")
def supervised_run(tmp_path_factory, ray_session, tiny_backbone, tiny_labeled) -> tuple[Path, dict]:
    """(folder, summary) of a supervised fine-tuning of the tiny backbone, long enough to fit."""
    from platform.finetune import main

    output = tmp_path_factory.mktemp("runs") / "supervised"
    return output, main(finetune_config(tiny_labeled, output, f"checkpoint={tiny_backbone}", *FITTING))
