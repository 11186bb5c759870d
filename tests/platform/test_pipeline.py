"""The demo's pipeline at tiny sizes, from images to the report; repeated, and with stages deleted."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from platform.engine.config.compose import ROOT, load_config
from platform.engine.data.shards import read_manifest, write_manifest
from platform.engine.errors import ConfigError, StoppedError, UserError
from platform.engine.pipeline.results import table
from platform.engine.storage.location import open_storage
from platform.finetune import FinetuneConfig
from platform.pipeline import PipelineConfig, Results, ingest, main, of_set, source_proxy, stages
from platform.pretrain import PretrainConfig
from tests.platform.report_runs import write_data
from tests.tiny import PIPELINE as TINY

STAGES = [
    "ingest-target",
    "ingest-pretrain",
    "pretrain-full",
    "target-proxy",
    "score",
    "select",
    "pretrain-selected",
    "finetune-usl-random",
    "finetune-usl-full",
    "finetune-usl-selected",
    "report",
]

pytestmark = pytest.mark.timeout(1800)  # two minutes alone, several times longer on a busy machine


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_session):
    """(folder, results) of one complete run, with two stages at a time."""
    output = tmp_path_factory.mktemp("pipeline") / "run"
    return output, main(load_config(PipelineConfig, "pipeline", [f"output={output}", "concurrent=2", *TINY]))


def summaries(output) -> dict[str, int]:
    """When each stage of the run finished (modification times of the summaries)."""
    return {
        str(file.parent.relative_to(output)): file.stat().st_mtime_ns
        for file in output.rglob("summary.json")
        if file.parent != output
    }


def test_all_stages_run_and_the_results_are_complete(finished):
    output, results = finished
    stored = json.loads((output / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert sorted(stored["stages"]) == sorted(STAGES)
    assert all(stage["status"] == "complete" and stage["seconds"] >= 0 for stage in stored["stages"].values())
    assert stored["cfs"]["total"] == 96 and stored["cfs"]["selected"] == 48 and 0 <= stored["cfs"]["auc_planted"] <= 1
    assert stored["pretrain"]["steps"] == 12 and stored["pretrain"]["final_loss"] > 0 < stored["pretrain"]["images_per_second"]
    assert [(row["setting"], row["init"]) for row in stored["finetune"]] == [
        ("usl", "random"),
        ("usl", "full"),
        ("usl", "selected"),
    ]
    for row in stored["finetune"]:
        assert row["evaluation"] == dict.fromkeys(("expansion", "flip", "reranking", "resize")) and isinstance(
            row["warnings"], list
        )
        assert 0 < row["mAP"] <= 1 and 0 <= row["rank1"] <= row["rank5"] <= row["rank10"] <= 1 and 0 < row["mINP"] <= 1
        assert row["clusters"] >= 0
    assert stored["environment"]["ray"]
    page = (output / "report.html").read_text()
    assert len(page) > 10_000 and "usl" in page and "selected" in page


def test_the_stages_feed_each_other(finished):
    """Full and selected see the same number of images, the proxies belong together, and training used the selection."""
    output, _ = finished
    configs = {
        name: json.loads((output / name / "config.json").read_text())["config"]
        for name in ("proxy/target", "scores", "pretrain/full", "pretrain/selected", "finetune/usl-selected")
    }
    assert configs["proxy/target"]["checkpoint"] == configs["scores"]["source_proxy"] == str(output / "pretrain/full")
    assert configs["proxy/target"]["setting"] == "supervised" and configs["scores"]["target_proxy"] == str(
        output / "proxy/target"
    )
    full, selected = configs["pretrain/full"], configs["pretrain/selected"]
    assert full["data"]["selection"] == "" and selected["data"]["selection"] == str(output / "selection")
    assert full["length"] == selected["length"] and full["length"]["samples"] == 192
    assert configs["finetune/usl-selected"]["checkpoint"] == str(output / "pretrain/selected")
    assert pq.read_table(output / "selection" / "index.parquet").num_rows == 48


def test_a_second_call_does_nothing_again(finished, capsys):
    output, results = finished
    before, started = summaries(output), time.monotonic()
    again = main(load_config(PipelineConfig, "pipeline", [f"output={output}", *TINY, "concurrent=1"]))
    assert time.monotonic() - started < 60  # only the report is made; a training run would take longer
    said = capsys.readouterr().out
    assert said.count("is complete already") == len(STAGES) - 1 and " step " not in said
    assert summaries(output) == before and len(before) == 8
    for name in STAGES[:-1]:
        assert again["stages"][name] == results["stages"][name], "a stage keeps the time that it really took"
    assert again["finetune"] == results["finetune"] and again["cfs"] == results["cfs"]


@pytest.mark.slow
def test_a_deleted_stage_is_done_again_and_no_other(finished):
    output, results = finished
    before = summaries(output)
    for name in ("scores", "finetune/usl-random"):
        shutil.rmtree(output / name)
    again = main(load_config(PipelineConfig, "pipeline", [f"output={output}", *TINY]))
    after = summaries(output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"scores", "finetune/usl-random"}
    assert again["cfs"] == results["cfs"]
    assert again["finetune"][1:] == results["finetune"][1:]
    figures, expected = (
        {name: value for name, value in one["finetune"][0].items() if isinstance(value, float)} for one in (again, results)
    )
    assert figures == pytest.approx(expected, abs=1e-3) and len(figures) >= 5


def test_a_stage_is_running_then_complete_or_failed(tmp_path):
    """results.json has the right status at every moment, also after a kill."""

    def stored() -> dict:
        return json.loads((tmp_path / "results.json").read_text())["stages"]

    with Results(open_storage(str(tmp_path))).stage("score"):
        assert stored() == {"score": {"status": "running", "seconds": 0.0}}
        time.sleep(0.2)
    done = stored()["score"]
    assert done["status"] == "complete" and done["seconds"] >= 0.2
    for reason in (UserError("full"), KeyboardInterrupt()):
        with pytest.raises(type(reason)), Results(open_storage(str(tmp_path))).stage("select"):
            raise reason
        assert stored()["score"] == done and stored()["select"]["status"] == "failed"
    again = Results(open_storage(str(tmp_path)))
    with again.stage("score"):  # complete already
        pass
    with again.stage("select"):  # now complete
        time.sleep(0.2)
    assert stored()["score"] == done and stored()["select"]["status"] == "complete" and stored()["select"]["seconds"] >= 0.2


def test_a_failed_stage_is_in_the_results(tmp_path, ray_session):
    (tmp_path / "empty").mkdir()
    empty = ["pretrain_set.kind=folder", f"pretrain_set.path={tmp_path}/empty"]
    with pytest.raises(UserError, match=r"pretrain_set\.path .*empty does not exist or holds no files"):
        main(load_config(PipelineConfig, "pipeline", [f"output={tmp_path}/run", *TINY, *empty, "concurrent=1"]))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {name: stage["status"] for name, stage in found["stages"].items()} == {
        "ingest-target": "complete",
        "ingest-pretrain": "failed",
    }
    assert found["finetune"] == [] and found["environment"]["ray"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds a list where an object with 'stages' belongs"),
        ('{"stages": 3}', "its 'stages' is of type int"),
        ("{}", r"it has no 'stages' \(it has: nothing\)"),
        ('{"stages"', "is not valid JSON"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=rf"results\.json.*{message}"):
        Results(open_storage(str(tmp_path)))


def test_another_configuration_is_refused(finished):
    with pytest.raises(UserError, match=r"(?s)another configuration:\n  cfs\.fraction: 0\.5 -> 0\.6\n"):
        main(load_config(PipelineConfig, "pipeline", [f"output={finished[0]}", *TINY, "cfs.fraction=0.6"]))


@pytest.mark.slow
def test_a_stopped_pipeline_with_two_stages_at_a_time_is_continued(tmp_path):
    """The trainings that run write a checkpoint; the same command continues them."""
    command = [
        sys.executable,
        "-m",
        "platform.pipeline",
        f"output={tmp_path}/run",
        "concurrent=2",
        "cfs.controls=[random]",
        *TINY,
    ]
    command += ["settings=[]", "pretrain.length.samples=1600", "pretrain.checkpoint.every_steps=1000"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = set()
    for line in program.stdout:
        if " step " in line:
            running.add(line.split()[1])
        if {"pretrain-full", "pretrain-random_part"} <= running:
            break
    program.send_signal(signal.SIGTERM)
    told = program.stdout.read()
    assert program.wait(60) == 143 and told.count("on notice") == 2, told
    stages = json.loads((tmp_path / "run" / "results.json").read_text())["stages"]
    assert stages["pretrain-full"]["status"] == stages["pretrain-random_part"]["status"] == "failed"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("continuing from") == 2, again.stdout


def test_the_source_proxy_may_have_a_run_of_its_own(tmp_path):
    config = load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", *TINY, "cfs.proxy_samples=64"])
    story = stages(config, open_storage(str(tmp_path)))
    assert [stage.name for stage in story] == [*STAGES[:3], "source-proxy", *STAGES[3:]]
    assert source_proxy(config) == "proxy/source"


def test_controls_are_parts_pre_trained_as_the_selected_one(tmp_path):
    config = load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", *TINY, "cfs.controls=[inverse,random]"])
    names = [stage.name for stage in stages(config, open_storage(str(tmp_path)))]
    assert [name for name in names if name not in STAGES] == [
        "select-random_part",
        "pretrain-random_part",
        "select-inverse_part",
        "pretrain-inverse_part",
        "finetune-usl-random_part",
        "finetune-usl-inverse_part",
    ]


def test_seeds_repeat_all_stages_but_the_ingest(tmp_path):
    config = load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", *TINY, "seeds=[3,5]"])
    names = [stage.name for stage in stages(config, open_storage(str(tmp_path)))]
    once = [*STAGES[:2], STAGES[-1]]
    each = [f"seed-{seed}/{name}" for seed in (3, 5) for name in STAGES if name not in once]
    assert names == [*once[:2], *each, once[2]]
    own = config.with_seed(5)
    assert (own.seed, own.pretrain.seed, own.finetune.seed, own.seeds) == (5, 5, 5, [])
    assert replace(own, seed=0, seeds=[3, 5], pretrain=config.pretrain, finetune=config.finetune) == config


def test_the_results_of_seeds_are_means_with_their_spread(tmp_path):
    """The runs are written here as their programs leave them."""
    root = open_storage(str(tmp_path))
    for seed, rate in ((3, 0.25), (5, 0.35)):
        metrics = dict.fromkeys(("rank1", "rank5", "rank10", "mINP"), rate) | {"mAP": rate, "clusters": None}
        summary = metrics | {"start": {"mAP": 0.1}}
        root.joinpath(f"seed-{seed}", "finetune", "supervised-full", "summary.json").write_json(summary)
        root.joinpath(f"seed-{seed}", "scores", "summary.json").write_json({"total": 10, "auc_planted": rate})
        root.joinpath(f"seed-{seed}", "selection", "summary.json").write_json({"selected": 5})
    results = Results(root, [3, 5]).collect()
    assert [(row["seed"], row["mAP"]) for row in results["finetune"]] == [(3, 0.25), (5, 0.35)]
    text = table(results)
    assert "AUC against planted images 0.300 ± 0.071" in text and "over 2 seeds" in text
    (row,) = (line for line in text.splitlines() if line.startswith("supervised"))
    assert row.split()[:8] == ["supervised", "full", "10.0", "±", "0.0", "30.0", "±", "7.1"]


def test_the_source_set_is_read_for_uda_alone(tmp_path):
    config = load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", *TINY, "settings=[uda]"])
    names = [stage.name for stage in stages(config, open_storage(str(tmp_path)))]
    assert names[:3] == ["ingest-target", "ingest-source", "ingest-pretrain"]


def test_the_plain_pipeline_has_the_published_sizes():
    """They are the defaults of platform.pretrain and platform.finetune, and those of the groups that the user chooses."""
    config, pretrain = load_config(PipelineConfig, "pipeline"), load_config(PretrainConfig, "pretrain")
    tuned = load_config(FinetuneConfig, "finetune")
    for name in ("model", "objective", "augment", "optimizer", "length", "stream", "deepspeed", "scaling"):
        assert getattr(config.pretrain, name) == getattr(pretrain, name), name
    for name in ("supervised", "unsupervised", "augment", "scaling"):
        assert getattr(config.finetune, name) == getattr(tuned, name), name
    assert config.cfs.supervised == tuned.supervised
    chosen = load_config(PipelineConfig, "pipeline", ["model@pretrain.model=vit_base", "pretrain.model.image_size=[384,128]"])
    assert chosen.pretrain.model.width == 768 and chosen.pretrain.model.stem == "patch"
    assert chosen.pretrain.augment.global_size == chosen.finetune.augment.image_size == (384, 128)


VIDEO = ["pretrain_set.kind=video", "pretrain_set.path={}/street.avi", "pretrain_set.detections={}/street.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"pretrain_set is not given: .*pretrain_set\.kind=folder pretrain_set\.path=.*experiment=demo"),
        (["pretrain_set.kind=video", "settings=[]"], r"pretrain_set\.path is empty: say where the video source is"),
        ([*VIDEO[:2], "settings=[]"], r"pretrain_set\.detections is empty: a video needs"),
        (
            [*VIDEO[:2], "pretrain_set.detections={}/none.txt", "settings=[]"],
            r"pretrain_set\.detections=.*/none\.txt does not exist",
        ),
        (
            VIDEO,
            r"target_set is not given, and settings=\[supervised,uda,usl\].*target_set\.path=.*or give settings=\[\] to stop",
        ),
        ([*VIDEO, "target_set.kind=synthetic"], r"source_set is not given, .*or leave uda out: settings=\[supervised,usl\]"),
        ([*VIDEO, "target_set.path={}", "source_set.kind=msmt17"], r"source_set\.path is empty: say where the msmt17 source is"),
        ([*VIDEO, "settings=[usl]", "target_set.path={}/nowhere"], r"target_set\.path=.*/nowhere does not exist"),
    ],
)
def test_a_set_that_is_missing_is_refused_before_any_work(tmp_path, given, message):
    (tmp_path / "street.avi").touch()
    (tmp_path / "street.txt").touch()
    overrides = [f"output={tmp_path}/run", *(text.format(tmp_path) for text in given)]
    with pytest.raises(UserError, match=message) as raised:
        main(load_config(PipelineConfig, "pipeline", overrides))
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_a_target_without_a_test_split_is_refused_before_pre_training(tmp_path):
    """The data set is complete already, so nothing is read again."""
    chosen = ["experiment=demo", f"output={tmp_path}", "target_set.synthetic.target_identities=8", "row_group_rows=32"]
    config = load_config(PipelineConfig, "pipeline", chosen)
    location = write_data(tmp_path / "data" / "target", "pretrain")
    arguments = {"raw": config.target_set.arguments(), "limit": 0, "shard_mb": 64, "row_group_rows": 32}
    write_manifest(location, replace(read_manifest(location), arguments=arguments))
    with pytest.raises(UserError, match=r"^target_set: .*no images of split query, gallery; its splits are train"):
        ingest(config, "target")


def test_a_set_that_was_ingested_under_another_spelling_of_its_path_is_complete(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    configs = [
        load_config(PipelineConfig, "pipeline", [f"output={tmp_path}", f"pretrain_set.path={path}", "row_group_rows=32"])
        for path in (f"{tmp_path}/real", f"{tmp_path}/link/", f"{tmp_path}/other")
    ]
    location = write_data(tmp_path / "data" / "pretrain", "pretrain")
    arguments = {"raw": configs[0].pretrain_set.arguments(), "limit": 0, "shard_mb": 64, "row_group_rows": 32}
    write_manifest(location, replace(read_manifest(location), arguments=arguments))
    ingest(configs[1], "pretrain")
    with pytest.raises(UserError, match=r"pretrain_set\.path was '.*/real', now '.*/other'"):
        ingest(configs[2], "pretrain")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raw.path is empty", "target_set.path is empty"),
        ("(raw.crops)", "(target_set.crops)"),
        ("/my-raw.path/x holds nothing", "target_set: /my-raw.path/x holds nothing"),
        ("/open/source.path does not exist", "target_set: /open/source.path does not exist"),
        ("source.txt is torn", "target_set: source.txt is torn"),
    ],
)
def test_errors_of_the_readers_name_the_set(text, expected):
    with pytest.raises(StoppedError) as raised, of_set("target"):
        raise StoppedError(text)
    assert str(raised.value) == expected and raised.value.status == 143


def test_without_a_target_set_the_images_are_clustered(tmp_path, ray_session):
    """A street video alone gives a backbone, pseudo-identities and a report without gaps."""
    given = [
        "experiment=small",
        "settings=[]",
        "pretrain_set.kind=synthetic",
        "pretrain_set.part=target",
        "pretrain_set.synthetic.image_size=[64,32]",
        "pretrain_set.synthetic.target_identities=8",
    ]
    tiny = [text for text in TINY if text.startswith(("pretrain.", "finetune.unsupervised.", "row_group"))]
    results = main(load_config(PipelineConfig, "pipeline", [f"output={tmp_path}/run", *given, *tiny]))
    assert list(results["stages"]) == ["ingest-pretrain", "pretrain-full", "cluster", "report"]
    labels = pq.read_table(tmp_path / "run" / "clusters" / "labels.parquet")
    found = labels["label"].to_numpy()
    assert results["clusters"] == {"images": labels.num_rows, "clusters": found.max() + 1, "outliers": (found < 0).sum()}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Not there" not in page and "Pseudo-identities" in page


def test_settings_that_cannot_be(tmp_path):
    for override, message in (
        ("cfs.controls=[worst]", "controls must be some of random, inverse"),
        ("cfs.controls=[random,random]", r"cfs\.controls must be some of random, inverse, each once: got \['random', 'random'\]"),
        ("seeds=[1,1]", "seeds must be different integers"),
        ("settings=[semi]", "settings must be some of supervised, uda, usl"),
        ("settings=[usl,usl]", r"settings must be some of supervised, uda, usl, each once: got \['usl', 'usl'\]"),
        ("finetune.supervised.jigsaw.parts=4", r"jigsaw.parts must be 0 unless settings=\[supervised\]"),
        ("cfs.fraction=0", r"fraction must be in \(0, 1\]"),
        ("cfs.among=0.2", r"configuration: cfs\.among must be at least cfs\.fraction"),
        ("cfs.target_proxy=moco", "target_proxy must be one of supervised, usl"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(PipelineConfig, "pipeline", [override])
