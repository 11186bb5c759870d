"""The sides of `python -m benchmarks.scoring`: platform.score, its actors alone, loops in one process, and measures of groups."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.people import write_shards
from benchmarks.s3 import BUCKET

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def make_shards(folder: str, size: dict[str, Any]) -> None:
    """Shards of `num` and of twice as many images below `folder`."""
    height, width = size["size"]
    for name, num in (("shards", size["num"]), ("twice", 2 * size["num"])):
        write_shards(f"{folder}/{name}", f"[{height},{width}]", num, f"row_group_rows={size['rows']}", "shard_mb=1")


def make_models(folder: str, size: dict[str, Any]) -> None:
    """Two models of different weights below `folder`."""
    from reidssl.models.model_config import VitConfig
    from reidssl.models.vit import build_vit
    from reidssl.models.weights import save_model

    model = VitConfig(
        image_size=size["size"], stem="patch", **{key: size[key] for key in ("width", "depth", "heads", "patch_size")}
    )
    for seed, name in enumerate(("source", "target")):
        Path(folder, name).mkdir()
        save_model(build_vit(model, seed=seed), {"kind": "backbone", **IMAGENET}, Path(folder, name, "backbone.safetensors"))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def ours(arguments: dict[str, Any]) -> Any:
    """platform.score from its command line on. The rate comes from the times at which it wrote the parts of the scores."""
    from platform.engine.config.compose import load_config
    from platform.engine.data.parts import PARTS
    from platform.engine.data.shards import read_manifest
    from platform.engine.schemas.score_settings import ScoreConfig
    from platform.engine.storage.location import open_storage
    from platform.score import main

    folder, output = arguments["folder"], tempfile.mkdtemp(dir=arguments["folder"])
    endpoint, nodes = arguments.get("endpoint", ""), arguments.get("nodes", 0)
    data = f"s3://{BUCKET}/{arguments['data']}" if endpoint else f"{folder}/{arguments['data']}"
    given = [f"data={data}", f"source_proxy={folder}/source", f"target_proxy={folder}/target", f"storage.endpoint_url={endpoint}"]
    pool = [f"pool.actors={nodes or cores()}", f"pool.batch={arguments['rows']}"]
    ray = f"runtime.address={cluster_of(nodes)}" if nodes else f"runtime.num_cpus={cores() + 2}"
    config = load_config(ScoreConfig, "score", [*given, *pool, ray, f"output={output}"])

    def work() -> dict[str, Any]:
        started = time.time()
        summary = main(config)
        entries = read_manifest(open_storage(config.data, config.storage)).files
        written = sorted((Path(output, PARTS, entry.name).stat().st_mtime, entry.rows) for entry in entries)
        return {"mean": summary["mean"], "first": written[0][0] - started} | rate_of([*written])

    return work, lambda found: found


def cluster_of(nodes: int) -> str:
    """Address of a new Ray cluster on this machine: a head that reads, and nodes of one CPU. It ends with this process."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 500 << 20})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
    return str(cluster.address)


def rate_of(finished: list[tuple[float, int]]) -> dict[str, Any]:
    """{"rate": images per second after the first eighth of the pieces (None for a single one), "seconds", "images"}.

    finished: (time, images) of each piece, in order of time.
    """
    warm = max(1, len(finished) // 8)
    seconds, counted = finished[-1][0] - finished[warm - 1][0], sum(count for _, count in finished[warm:])
    return {"rate": counted / seconds if counted else None, "seconds": seconds, "images": sum(count for _, count in finished)}


def loop(arguments: dict[str, Any]) -> Any:
    """The other side: one process with all cores. decoded: the images are read and decoded before the timing."""
    import pyarrow.parquet as pq
    import torch

    from platform.engine.data.shards import read_manifest
    from platform.engine.inference.models import load_model
    from platform.engine.storage.location import StorageConfig, open_storage
    from reidssl.data.decode import decode_batch

    torch.set_num_threads(cores())
    root = open_storage(f"{arguments['folder']}/{arguments['data']}")
    models = [load_model(f"{arguments['folder']}/{name}", StorageConfig()) for name in ("source", "target")]
    units = [(entry.name, group) for entry in read_manifest(root).files for group in range(len(entry.row_groups))]

    def images_of(unit: tuple[str, int]) -> np.ndarray:
        table = pq.ParquetFile(f"{arguments['folder']}/{arguments['data']}/{unit[0]}").read_row_group(unit[1], columns=["image"])
        return decode_batch(table["image"].to_pylist(), models[0].image_size, threads=cores()).images

    ready = [images_of(unit) for unit in units] if arguments["decoded"] else None

    @torch.inference_mode()
    def work() -> dict[str, Any]:
        scores, finished = [], []
        for number, unit in enumerate(units):
            images = torch.from_numpy(ready[number] if ready else images_of(unit))
            source, target = (model.features(images) for model in models)
            scores.append(torch.nn.functional.cosine_similarity(source, target).numpy())
            finished.append((time.time(), len(images)))
        return {"mean": float(np.concatenate(scores).mean())} | rate_of(finished)

    return work, lambda found: found


def actors(arguments: dict[str, Any]) -> Any:
    """The actors of platform.score alone, with one model or with two."""
    from platform.engine.data.shards import read_manifest
    from platform.engine.inference.actors import FeatureActor, stream_through_actors
    from platform.engine.runtime.ray_session import connect
    from platform.engine.schemas.retrieval_settings import PoolConfig
    from platform.engine.schemas.runtime_settings import RuntimeConfig
    from platform.engine.storage.location import StorageConfig, open_storage
    from platform.score import Scorer
    from reidssl.models.given import LoadConfig

    folder, size = arguments["folder"], tuple(arguments["size"])
    root = open_storage(f"{folder}/{arguments['data']}")
    connect(RuntimeConfig(num_cpus=cores() + 2))
    given: dict[str, Any] = {"storage": StorageConfig(), "threads": 1, "precision": "fp32", "compiling": "off"}
    kind: type = FeatureActor
    if arguments["models"] == 1:
        given["model"] = f"{folder}/source"
    else:
        kind, loads = Scorer, {"load": LoadConfig(), "load_target": LoadConfig()}
        given |= {"source_proxy": f"{folder}/source", "target_proxy": f"{folder}/target", "measure": "cosine", **loads}
    pool = PoolConfig(actors=cores(), batch=arguments["rows"])

    def work() -> dict[str, Any]:
        batches = stream_through_actors([(root, read_manifest(root).files)], kind, given, size, pool)
        return rate_of([(time.time(), len(batch["key"])) for batch in batches])

    return work, lambda found: found


def groups(arguments: dict[str, Any]) -> Any:
    """A measure of groups on random features, shard by shard."""
    from reidssl.selection.cfs import group_scores

    random, rows = np.random.default_rng(0), 4096
    keys = [f"{number}.jpg" for number in range(rows)]
    source = random.standard_normal((rows, 384), np.float32)
    target = source + random.standard_normal((rows, 384), np.float32)
    group_scores(keys, source, target, arguments["measure"])

    def work() -> float:
        return sum(
            float(group_scores(keys, source, target, arguments["measure"]).mean()) for _ in range(arguments["num"] // rows)
        )

    return work, lambda found: {"sum": found}
