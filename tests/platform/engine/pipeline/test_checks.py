"""What a late stage of a pipeline would refuse is refused before the pre-training, with the keys of the pipeline."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from functools import cache, reduce

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from platform.engine.config.compose import build, composed_values
from platform.engine.data.shards import read_manifest, write_manifest, write_shard
from platform.engine.errors import UserError
from platform.engine.finetune.inputs import check_phases
from platform.engine.pipeline.checks import check_data, check_settings
from platform.engine.pipeline.configurations import finetune_config, target_proxy, tunings
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.storage.location import open_storage
from platform.ingest import arguments_of
from platform.pipeline import ingest_config, main
from tests.platform.report_runs import SYNTHETIC, write_data
from tests.tiny import PIPELINE as TINY


@cache
def composed():
    return composed_values(PipelineConfig, "pipeline", ["output=here", *TINY])


def config_of(output, *overrides: str) -> PipelineConfig:
    """The tiny pipeline with overrides of single keys, without a composition for each, which takes a second."""
    values = deepcopy(composed())
    for text in (f"output={output}", *overrides):
        key, _, value = text.partition("=")
        *sections, last = key.split(".")
        reduce(dict.__getitem__, sections, values)[last] = yaml.safe_load(value)
    return build(PipelineConfig, values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.evaluate.tasks=4"], r"^configuration: finetune\.evaluate\.tasks must be 0 in fine-tuning"),
        (
            ["cfs.target_proxy=usl", "cfs.supervised.jigsaw.parts=4"],
            r"^configuration: cfs\.supervised\.jigsaw\.parts must be 0 with cfs\.target_proxy=usl",
        ),
        (
            ["finetune.augment.image_size=[100,30]"],
            r"^configuration: finetune\.augment\.image_size does not fit: an image of 100",
        ),
        (["cfs.supervised.jigsaw.parts=99"], r"^target-proxy: cfs\.supervised\.jigsaw\.parts must be at most 8"),
        (
            ["settings=[supervised]", "finetune.supervised.jigsaw.parts=99"],
            r"^finetune-supervised-random: finetune\.supervised\.jigsaw\.parts must be at most 8",
        ),
        (
            ["finetune.unsupervised.freeze_layers=3"],
            r"^finetune-usl-random: finetune\.unsupervised\.freeze_layers must be at most 2",
        ),
        (["cfs.supervised.freeze_layers=3"], r"^target-proxy: cfs\.supervised\.freeze_layers must be at most 2"),
        (
            ["finetune.scaling.workers=99"],
            r"^target-proxy: 99 workers .*: lower finetune\.scaling\.workers, or raise cfs\.supervised\.batch\.identities$",
        ),
        (
            ["finetune.scaling.workers=3", "cfs.supervised.batch.micro_batches=4"],
            r"^target-proxy: 3 workers cannot share .*allowed values of finetune\.scaling\.workers: \[1, 2, 4\]",
        ),
        (
            ["pretrain.scaling.workers=3"],
            r"^pretrain-full: 3 workers .* values of pretrain\.scaling\.workers: .*pretrain\.stream\.micro_batches_per_step\)$",
        ),
    ],
)
def test_settings_of_late_stages_are_refused_before_any_work(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as raised:
        main(config_of(tmp_path / "run", *overrides))
    assert "\n" not in str(raised.value) and raised.value.status == 2 and not (tmp_path / "run").exists()


def test_a_stage_that_is_complete_may_have_had_other_workers(tmp_path):
    config, root = config_of(tmp_path, "pretrain.scaling.workers=3"), open_storage(str(tmp_path))
    for name in ("full", "selected"):
        root.joinpath("pretrain", name, "summary.json").write_json({})
    check_settings(config, root)


def test_the_target_proxy_has_the_image_size_of_the_pre_training(tmp_path):
    """Fine-tuning at a larger size is usual; the scores compare the two proxies on images of one size."""
    config, root = config_of(tmp_path, "finetune.augment.image_size=[128,64]"), open_storage(str(tmp_path))
    check_settings(config, root)
    proxy = finetune_config(config, root, target_proxy(config))
    assert proxy.augment.image_size == proxy.model.image_size == config.pretrain.model.image_size == (64, 32)
    assert proxy.augment == replace(config.finetune.augment, image_size=(64, 32)) and proxy.supervised == config.cfs.supervised
    for tuning in tunings(config):
        run = finetune_config(config, root, tuning)
        assert run.augment.image_size == run.model.image_size == (128, 64) and run.supervised == config.finetune.supervised
        check_phases(run, run.model)


def write_set(config, part, kind="", change=lambda table: table, **sizes):
    """Write one of the sets as its ingest leaves it. change: of the table of its rows."""
    location = write_data(open_storage(config.output).joinpath("data", part).path, kind or part, replace(SYNTHETIC, **sizes))
    manifest = read_manifest(location)
    table = change(pa.concat_tables([pq.read_table((location / entry.name).path) for entry in manifest.files]))
    splits = table["split"].to_pylist()
    write_manifest(
        location,
        replace(
            manifest,
            files=[write_shard(location, table, 16)],
            splits={name: splits.count(name) for name in sorted(set(splits))},
            arguments=arguments_of(ingest_config(config, part)),
        ),
    )


def column(name, value):
    """A change that gives all rows one value in a column."""
    return lambda table: table.set_column(
        table.schema.get_field_index(name), table.schema.field(name), pa.array(np.full(len(table), value, np.int32))
    )


@pytest.mark.parametrize(
    ("part", "change", "overrides", "message"),
    [
        ("target", None, ["cfs.supervised.batch.identities=9"], r"has \d people .* lower cfs\.supervised\.batch\.identities$"),
        (
            "target",
            None,
            ["settings=[supervised]", "finetune.supervised.batch.identities=9"],
            r"has \d people .* lower finetune\.supervised\.batch\.identities$",
        ),
        ("target", column("camid", 3), [], r"cannot be judged: all images of the \d people .* one camera"),
        ("target", None, ["pretrain.probe.split=dev"], "has no images of split dev"),
        (
            "target",
            None,
            [f"finetune.unsupervised.cluster.{text}" for text in ("algorithm=kmeans", "num_clusters=999")],
            r"finetune\.unsupervised\.cluster\.num_clusters must be at most \d+,",
        ),
        ("source", None, ["settings=[uda]", "finetune.supervised.batch.identities=9"], r"lower finetune\.supervised\.batch"),
        ("source", column("pid", -1), ["settings=[uda]"], r"has unlabeled images .*; use settings=\[usl\]$"),
        (
            "pretrain",
            None,
            ["pretrain.length.samples=8"],
            r"^8 samples are fewer than one global batch of 16: train longer, .*lower pretrain\.stream\.micro_batch or ",
        ),
        ("pretrain", None, ["cfs.proxy_samples=8"], r"^8 samples .*: raise cfs\.proxy_samples, ingest more images"),
    ],
)
def test_a_set_that_a_late_stage_cannot_use_is_refused_after_its_ingest(tmp_path, part, change, overrides, message):
    config = config_of(tmp_path, *overrides)
    write_set(config, part, change=change or (lambda table: table))
    with pytest.raises(UserError, match=message) as raised:
        check_data(config, part)
    assert "\n" not in str(raised.value)


def test_sets_that_all_stages_can_use_pass(tmp_path):
    config = config_of(tmp_path, "settings=[supervised,uda,usl]", "cfs.proxy_samples=32")
    for part in ("target", "source", "pretrain"):
        write_set(config, part, source_identities=8)
        check_data(config, part)


@pytest.mark.parametrize("last", ["target", "source"])
def test_one_set_as_source_and_target_is_refused_when_both_are_there(tmp_path, last):
    config = config_of(tmp_path, "settings=[uda]")
    for part in ("target", "source"):
        write_set(config, part, kind="target")
    with pytest.raises(UserError, match="target_set and source_set are the same data set"):
        check_data(config, last)
    check_data(config_of(tmp_path, "settings=[usl]"), "target")  # the source set is not read


def test_without_labels_the_target_proxy_is_told_how_to_do_without(tmp_path):
    config = config_of(tmp_path)
    write_set(config, "target", change=without_training_labels)
    with pytest.raises(UserError, match=r"has unlabeled images in split train.*; use cfs\.target_proxy=usl$"):
        check_data(config, "target")
    check_data(config_of(tmp_path, "cfs.target_proxy=usl"), "target")


def without_training_labels(table):
    train = np.asarray(table["split"].to_pylist()) == "train"
    pids = np.where(train, -1, table["pid"].to_numpy()).astype(np.int32)
    return table.set_column(table.schema.get_field_index("pid"), table.schema.field("pid"), pa.array(pids))


def test_a_corrected_command_is_accepted_in_the_same_folder(tmp_path, ray_session):
    """The set is refused before the configuration is stored; the same command without the error goes on to the next set."""
    (tmp_path / "empty").mkdir()
    further = ["concurrent=1", "pretrain_set.kind=folder", f"pretrain_set.path={tmp_path}/empty"]
    wrong = config_of(tmp_path / "run", *further, "settings=[supervised,usl]", "finetune.supervised.batch.identities=9")
    write_set(wrong, "target")
    with pytest.raises(UserError, match=r"^target_set: .*lower finetune\.supervised\.batch\.identities"):
        main(wrong)
    folder = tmp_path / "run"
    assert statuses(folder) == {"ingest-target": "failed"} and not (folder / "config.json").exists()
    with pytest.raises(UserError, match=r"pretrain_set\.path .*empty does not exist or holds no files"):
        main(config_of(folder, *further, "settings=[supervised,usl]", "finetune.supervised.batch.identities=4"))
    assert statuses(folder) == {"ingest-target": "complete", "ingest-pretrain": "failed"}
    with pytest.raises(UserError, match=r"holds a data set made with other arguments .*, or delete that folder$"):
        main(config_of(folder, *further, "target_set.synthetic.target_identities=20"))
    shutil.rmtree(folder / "data" / "target")
    rounds = open_storage(str(folder / "data" / "target" / "ingest-rounds"))
    (rounds / "arguments.json").write_json({"limit": 3})  # as an interrupted ingest leaves them
    (rounds / "00000.json").write_json({})
    with pytest.raises(UserError, match=r"holds an interrupted ingest made with other arguments .*, or delete that folder"):
        main(config_of(folder, *further))
    assert not (folder / "config.json").exists()


def test_stages_of_an_earlier_command_are_forgotten(tmp_path, ray_session):
    (tmp_path / "empty").mkdir()
    open_storage(str(tmp_path)).joinpath("run", "results.json").write_json(
        {"stages": {"ingest-source": {"status": "failed", "seconds": 1.0}}}
    )
    config = config_of(tmp_path / "run", "concurrent=1", "pretrain_set.kind=folder", f"pretrain_set.path={tmp_path}/empty")
    write_set(config, "target")
    with pytest.raises(UserError, match="holds no files"):
        main(config)
    assert statuses(tmp_path / "run") == {"ingest-target": "complete", "ingest-pretrain": "failed"}


def statuses(folder):
    return {name: stage["status"] for name, stage in json.loads((folder / "results.json").read_text())["stages"].items()}
