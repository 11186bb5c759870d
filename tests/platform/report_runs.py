"""Small real run folders for the report's tests, written by the engine's own functions: no Ray, a second each."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from platform.cluster import LABELS, ClusterProgramConfig
from platform.engine.data.image_set import ImageSet
from platform.engine.data.parts import PARTS, write_table
from platform.engine.data.shards import Manifest, read_manifest, read_rows, write_manifest, write_rejected, write_shard
from platform.engine.inference.evaluation import EvaluateConfig, evaluate_features
from platform.engine.inference.models import BACKBONE, REID, load_model
from platform.engine.ingest.sources.source import encode_image
from platform.engine.runs.metrics import Tracker, TrackingConfig
from platform.engine.runs.run_folder import Run, environment, open_run
from platform.engine.schemas.pretrain_settings import DataConfig, PretrainConfig
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.finetune import FinetuneConfig
from platform.score import ScoreConfig, summarize
from platform.select import SelectConfig
from platform.select import main as select
from reidssl.augment.multicrop import MultiCropConfig
from reidssl.augment.reid_augment import ReidAugmentConfig
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from reidssl.models.weights import model_bytes, weights_hash
from reidssl.objectives import ObjectiveConfig
from reidssl.objectives.dino import DinoConfig
from reidssl.selection.cfs import cfs_scores
from reidssl.synthetic.people import SyntheticConfig, render, specifications
from tests.fixtures_runs import embed_all

SIZE = (32, 16)
STORAGE = StorageConfig()
VIT = VitConfig(width=32, depth=1, heads=2, patch_size=8, stem="patch", image_size=SIZE)
SYNTHETIC = SyntheticConfig(
    image_size=SIZE,
    num_pretrain=48,
    pretrain_identities=8,
    pretrain_scenes=4,
    source_identities=4,
    target_identities=8,
    source_cameras=3,
    target_cameras=3,
    cameras_per_identity=3,
    images_per_camera=2,
)


def write_data(root: Path, part: str, synthetic: SyntheticConfig = SYNTHETIC, hostile: str = "") -> Location:
    """Write a part of the synthetic people as shards; `hostile` goes into the key of the first query (or the first image)."""
    location = open_storage(str(root))
    specs = specifications(synthetic, part)
    if hostile:
        first = next((place for place, spec in enumerate(specs) if spec.split == "query"), 0)
        specs[first] = specs[first]._replace(key=specs[first].key + hostile)
    images = [encode_image(render(spec, synthetic), "jpeg", 90) for spec in specs]
    height, width = synthetic.image_size
    table = pa.table(
        {
            "key": pa.array([spec.key for spec in specs]),
            "image": pa.array(images, pa.binary()),
            "height": pa.array([height] * len(specs), pa.int32()),
            "width": pa.array([width] * len(specs), pa.int32()),
            "pid": pa.array([spec.pid for spec in specs], pa.int32()),
            "camid": pa.array([spec.camid for spec in specs], pa.int32()),
            "split": pa.array([spec.split for spec in specs]),
            "planted": pa.array([spec.planted for spec in specs], pa.int32()),
        }
    )
    entry = write_shard(location, table, row_group_rows=16)
    write_rejected(location, [])
    splits = {name: sum(spec.split == name for spec in specs) for name in sorted({spec.split for spec in specs})}
    write_manifest(
        location,
        Manifest(
            [entry],
            source={"kind": "synthetic", "path": ""},
            splits=splits,
            extra_columns={"split": "string", "planted": "int32"},
        ),
    )
    return location


def write_log(run: Run, rows: list[dict[str, Any]]) -> None:
    tracker = Tracker(run.location, TrackingConfig())
    tracker.rows = [{"position": place + 1, "time": 1.7e9 + place, **row} for place, row in enumerate(rows)]
    tracker.publish()


def write_pretraining(
    output: Path, data: Path, *, seed: int = 0, vit: VitConfig = VIT, steps: int = 12, finished: bool = True
) -> Run:
    """Write a pre-training run folder with a real backbone of random weights and a log of smooth curves."""
    config = PretrainConfig(
        output=str(output),
        data=DataConfig(uri=str(data)),
        model=vit,
        objective=ObjectiveConfig(dino=DinoConfig(out_dim=256)),
        augment=MultiCropConfig(global_size=vit.image_size, local_size=vit.image_size),
    )
    run = open_run("pretrain", str(output), config, STORAGE)
    wave = np.random.default_rng(seed).normal(0, 0.05, (steps, 4))
    rows = []
    for step in range(steps):
        done = (step + 1) / steps
        row = {
            "position": 64 * (step + 1),
            "loss": 4.0 + 1.6 * math.exp(-3 * done) + wave[step, 0],
            "learning_rate": 1e-3 * (1 - done),
            "images_per_second": 190 + 60 * wave[step, 1],
            "teacher_entropy": 4.4 - 1.5 * done + wave[step, 2],
            "feature_std": 0.1 + 0.02 * done,
            "teacher_momentum": 0.996 + 0.004 * done,
            "weight_decay": 0.04 + 0.36 * done,
        }
        if step % 4 == 3:
            row |= {"probe_mAP": 0.1 + 0.2 * done + 0.01 * seed, "probe_same_camera": 0.6 - 0.2 * done}
        rows.append(row)
    write_log(run, rows)
    if finished:
        (run.location / BACKBONE).write_bytes(model_bytes(build_vit(vit, seed), {"kind": "backbone", "manifest": "-"}))
        run.finish(
            {"samples_seen": 64 * steps, "steps": steps, "final_loss": rows[-1]["loss"], "images_per_second": 192.5, "probe": {}}
        )
    return run


def write_finetuning(
    output: Path,
    target: Path,
    setting: str,
    init: str,
    *,
    seed: int = 0,
    vit: VitConfig = VIT,
    source: str = "",
    finished: bool = True,
) -> Run:
    """Write a fine-tuning run folder with a real model, its real metrics and rankings, and a log of smooth curves."""
    config = FinetuneConfig(
        output=str(output),
        setting=setting,
        checkpoint=init,
        target_set=str(target),
        source_set=source,
        model=vit,
        seed=seed,
        augment=ReidAugmentConfig(image_size=vit.image_size),
    )
    run = open_run("finetune", str(output), config, STORAGE)
    rows: list[dict[str, Any]] = []
    for phase, labeled in enumerate({"supervised": [True], "usl": [False], "uda": [True, False]}[setting]):
        for epoch in range(6):
            loss = (6.0 if labeled else 2.5) * math.exp(-epoch / 4) + 0.1 * seed
            own = (
                {"identity": loss / 2, "triplet": loss / 2, "accuracy": epoch / 6}
                if labeled
                else {
                    "contrast": loss,
                    "clusters": 9 - epoch + seed,
                    "outliers": 12 - 2 * epoch,
                    "cluster_seconds": 0.1,
                    "adjusted_rand_index": 0.2 + 0.1 * epoch,
                }
            )
            rows.append(
                {"phase": phase, "epoch": epoch + 1, "loss": loss, "learning_rate": 3e-4, "images_per_second": 80.0} | own
            )
    write_log(run, rows)
    if not finished:
        return run
    model = ReidModel(build_vit(vit, seed), 0)
    (run.location / REID).write_bytes(model_bytes(model, {"neck": "before", "setting": setting}))
    loaded = load_model(str(output), STORAGE)
    query, gallery = (ImageSet(open_storage(str(target)), [split], vit.image_size) for split in ("query", "gallery"))
    result = evaluate_features(query, gallery, embed_all(loaded, query), embed_all(loaded, gallery), EvaluateConfig())
    (run.location / "rankings.json").write_json(result.pop("rankings"))
    run.finish(
        {
            "setting": setting,
            "checkpoint": init,
            "target_set": str(target),
            "image_size": list(vit.image_size),
            "seed": seed,
            "neck": "before",
            "weights": weights_hash(model)[:12],
            "clusters": None if setting == "supervised" else 4 + seed,
            **result,
        }
    )
    return run


def write_scores(output: Path, data: Path, source: Path, target: Path) -> Run:
    """Write real scores of the images by the two proxies."""
    config = ScoreConfig(output=str(output), source_proxy=str(source), target_proxy=str(target), data=str(data))
    run = open_run("score", str(output), config, STORAGE)
    root = open_storage(str(data))
    manifest = read_manifest(root)
    proxies = [load_model(str(uri), STORAGE) for uri in (source, target)]
    images = ImageSet(root, ["train"], proxies[0].image_size)
    scores = cfs_scores(*(embed_all(proxy, images) for proxy in proxies)).numpy()
    write_table(run.location / PARTS / manifest.files[0].name, pa.table({"key": images.keys, "score": pa.array(scores)}))
    run.finish(summarize(run.location, root, manifest) | {"data_checksum": manifest.checksum, "measure": "cosine"})
    return run


def write_clusters(output: Path, data: Path, labels: list[int]) -> Run:
    """Write a finished clustering of the first images; the others are outliers."""
    config = ClusterProgramConfig(output=str(output), checkpoint="runs/any", data=str(data))
    run = open_run("cluster", str(output), config, STORAGE)
    keys = read_rows(open_storage(str(data)), ["key"])["key"]
    found = np.full(len(keys), -1, np.int32)
    found[: len(labels)] = labels
    write_table(run.location / LABELS, pa.table({"key": keys, "label": pa.array(found)}))
    run.finish({"images": len(found), "clusters": len(set(labels) - {-1}), "outliers": int((found < 0).sum())})
    return run


def write_pipeline(
    root: Path,
    *,
    vit: VitConfig = VIT,
    synthetic: SyntheticConfig = SYNTHETIC,
    hostile: str = "",
    inits: tuple[str, ...] = ("random", "full", "selected"),
    settings: tuple[str, ...] = ("supervised", "uda", "usl"),
) -> Path:
    """Write the folder of a finished pipeline."""
    for part in ("pretrain", "source", "target"):
        write_data(root / "data" / part, part, synthetic, hostile if part != "source" else "")
    data, target = root / "data" / "pretrain", root / "data" / "target"
    write_pretraining(root / "proxy" / "source", data, seed=1, vit=vit, steps=6)
    write_finetuning(root / "proxy" / "target", target, "supervised", str(root / "proxy" / "source"), seed=2, vit=vit)
    write_scores(root / "scores", data, root / "proxy" / "source", root / "proxy" / "target")
    select(SelectConfig(output=str(root / "selection"), scores=str(root / "scores"), data=str(data)))
    for seed, name in enumerate(("full", "selected")):
        write_pretraining(root / "pretrain" / name, data, seed=3 + seed, vit=vit)
    finetuned = []
    for setting in settings:
        for seed, init in enumerate(inits):
            start = "" if init == "random" else str(root / "pretrain" / init)
            run = write_finetuning(
                root / "finetune" / f"{setting}-{init}",
                target,
                setting,
                start,
                seed=seed,
                vit=vit,
                source=str(root / "data" / "source"),
            )
            finetuned.append({"setting": setting, "init": init, **{name: (run.summary or {})[name] for name in ("mAP", "rank1")}})
    stages = {"data": {"status": "done", "seconds": 3.2}, "pretrain/full": {"status": "done", "seconds": 252.0}}
    open_storage(str(root / "results.json")).write_json({"stages": stages, "finetune": finetuned, "environment": environment()})
    return root
