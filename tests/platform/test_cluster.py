"""Clustering a data set through its `main`: labels equal to those of this process, resuming by shard, refusals."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from platform.cluster import ClusterProgramConfig, label, main, rand_index
from platform.engine.config.compose import load_config
from platform.engine.data.image_set import ImageSet
from platform.engine.data.people import DISTRACTOR
from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import ConfigError, StorageError, UserError
from platform.engine.inference.models import load_model
from platform.engine.storage.location import StorageConfig, open_storage
from reidssl.clustering.agreement import agreement
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from tests.fixtures_runs import embed_all
from tests.fixtures_shards import with_labels
from tests.platform.engine.clustering.test_sharded_neighbors import write_parts

TINY = ["cluster.k1=6", "cluster.k2=2", "cluster.eps=0.55", "cluster.min_samples=2", "pool.actors=1", "pool.batch=32"]


def config_of(model, data, output, *overrides: str) -> ClusterProgramConfig:
    return load_config(
        ClusterProgramConfig, "cluster", [f"checkpoint={model}", f"data={data}", f"output={output}", *TINY, *overrides]
    )


@pytest.fixture(scope="module")
def clustered(tmp_path_factory, ray_session, tiny_backbone, tiny_shards):
    """(folder, summary) of a clustering with the search shared by two actors."""
    output = tmp_path_factory.mktemp("cluster") / "clusters"
    return output, main(
        config_of(
            tiny_backbone, tiny_shards.uri, output, "neighbors.actors=2", "neighbors.cpus_per_actor=0.5", "neighbors.block=30"
        )
    )


def test_labels_equal_those_of_this_process(clustered, tiny_backbone, tiny_shards):
    output, summary = clustered
    images = ImageSet(tiny_shards, ["train"], (64, 32))
    features = embed_all(load_model(str(tiny_backbone), StorageConfig()), images)
    expected = pseudo_labels(features, ClusterConfig(k1=6, k2=2, eps=0.55, min_samples=2))
    assert expected.num_clusters > 2
    table = pq.read_table(output / "labels.parquet")
    assert table["key"].to_pylist() == images.keys
    np.testing.assert_array_equal(table["label"].to_numpy(), expected.labels)
    assert (summary["images"], summary["clusters"], summary["outliers"]) == (90, expected.num_clusters, expected.num_outliers)
    assert set(summary["seconds"]) == {"search", "jaccard", "dbscan"} and "adjusted_rand_index" not in summary
    assert json.loads((output / "summary.json").read_text()) == summary


def test_only_what_is_missing_is_done_again(clustered, tiny_backbone, tiny_shards, tmp_path, capsys):
    copy = tmp_path / "clusters"
    shutil.copytree(clustered[0], copy)
    (copy / "summary.json").unlink()
    (copy / "parts" / read_manifest(tiny_shards).files[1].name).unlink()
    again = main(config_of(tiny_backbone, tiny_shards.uri, copy))  # without actors
    printed = capsys.readouterr().out
    assert "90 images in 2 shards, 55 have features" in printed
    assert f"{again['clusters']:,} clusters, {again['outliers']:,} outliers of 90 images" in printed
    np.testing.assert_array_equal(*(pq.read_table(each / "labels.parquet")["label"].to_numpy() for each in (copy, clustered[0])))
    main(config_of(tiny_backbone, tiny_shards.uri, copy))
    assert "is complete already" in capsys.readouterr().out


def test_the_rand_index_compares_people_not_numbers(tmp_path, ray_session, tiny_backbone, tiny_labeled):
    """Half of the test people have the numbers of training people, and in Market-1501 number 0 is nobody."""
    labels = np.array([0, 0, 1, 1, 2, 2, -1])
    people = np.array([4, 4, 5, 5, DISTRACTOR, DISTRACTOR, DISTRACTOR])
    assert rand_index(labels, people) == 1.0
    assert rand_index(labels, np.append(people[:-1], -1)) is None is rand_index(labels, np.full(7, DISTRACTOR))
    assert rand_index(labels[:0], people[:0]) is None

    numbers: dict[tuple[bool, int], int] = {}

    def label(row: int, key: str, split: str, pid: int, camid: int) -> tuple[int, int]:
        of_part = numbers.setdefault((split == "train", pid), sum(train == (split == "train") for train, _ in numbers))
        return (0 if split == "gallery" and row % 3 == 0 else of_part + 1), camid

    data = with_labels(tiny_labeled, open_storage(str(tmp_path / "market")), label, source={"kind": "market1501"})
    summary = main(config_of(tiny_backbone, data.uri, tmp_path / "clusters"))
    found, truth = pq.read_table(tmp_path / "clusters" / "labels.parquet")["label"].to_numpy(), read_rows(tiny_labeled)
    judged = read_rows(data)["pid"].to_numpy() != 0
    expected = agreement(found[judged], truth["pid"].to_numpy()[judged])  # the people have 12 numbers there
    assert 0 < (~judged).sum() < 18 and summary["adjusted_rand_index"] == pytest.approx(expected)


def test_wrong_inputs_are_said_and_bind_nothing(tmp_path, tiny_backbone, tiny_shards, clustered):
    output = tmp_path / "clusters"
    with pytest.raises(UserError, match="checkpoint is empty: name the run folder or checkpoint file"):
        main(config_of("", tiny_shards.uri, output))
    with pytest.raises(UserError, match=r"there is no model at .*nowhere"):
        main(config_of(tmp_path / "nowhere", tiny_shards.uri, output))
    with pytest.raises(StorageError, match=r"there is no data set at .*empty"):
        main(config_of(tiny_backbone, tmp_path / "empty", output))
    assert not output.exists()
    with pytest.raises(ConfigError, match=r"cluster.eps_end is for fine-tuning.*: got 0.7; set cluster.eps"):
        config_of(tiny_backbone, tiny_shards.uri, output, "cluster.eps_end=0.7")
    with pytest.raises(ConfigError, match=r"cluster.search must be one of exact, ivf, hnsw: got 'lsh'"):
        config_of(tiny_backbone, tiny_shards.uri, output, "cluster.search=lsh")
    with pytest.raises(ConfigError, match=r"neighbors.actors must be 0 with cluster.algorithm=kmeans, which runs in one"):
        config_of(
            tiny_backbone, tiny_shards.uri, output, "cluster.algorithm=kmeans", "cluster.num_clusters=5", "neighbors.actors=2"
        )
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  cluster.eps: "):
        main(config_of(tiny_backbone, tiny_shards.uri, clustered[0], "cluster.eps=0.7"))
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  checkpoint: "):
        main(config_of(tmp_path / "other", tiny_shards.uri, clustered[0]))


@pytest.mark.slow
def test_with_actors_no_features_come_to_this_process(monkeypatch, ray_session, tmp_path, tiny_backbone, tiny_shards):
    """Only the actors read the files. Also without actors, a row that is not finite is reported with its file."""
    values = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    parts = write_parts(tmp_path, values, [50, 40])
    config = config_of(tiny_backbone, tiny_shards.uri, tmp_path, "neighbors.actors=1", "neighbors.cpus_per_actor=0.5")
    alone = label(config_of(tiny_backbone, tiny_shards.uri, tmp_path), parts)
    monkeypatch.setattr(type(parts[0]), "read", lambda part: pytest.fail("read by the driver"))  # only in this process
    np.testing.assert_array_equal(label(config, parts).labels, alone.labels)
    monkeypatch.undo()
    values[70] = np.nan
    with pytest.raises(UserError, match=r"features must be finite: row 20 of \S*1\.parquet holds NaN"):
        label(config_of(tiny_backbone, tiny_shards.uri, tmp_path), write_parts(tmp_path, values, [50, 40]))
