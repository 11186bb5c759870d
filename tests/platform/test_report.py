"""The report page of small real run folders: its contents, its completeness, and its safety against hostile names."""

import base64
import io
import json
import re
import shutil
import threading
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from platform.engine.config.compose import load_config
from platform.engine.data.shards import read_manifest
from platform.engine.errors import UserError
from platform.engine.ingest.sources import RawConfig
from platform.engine.report import charts, pictures, tables
from platform.engine.report.contents import DataSet, RunFolder, read_folder
from platform.engine.report.results import result_rows
from platform.engine.report.watch import Watch, is_running
from platform.engine.runs.run_folder import open_run
from platform.engine.storage.location import StorageConfig, open_storage
from platform.pipeline import PipelineConfig
from platform.report import ReportConfig, main, render
from platform.select import SelectConfig
from platform.select import main as select
from tests.fixtures_shards import with_labels
from tests.platform.report_runs import (
    SIZE,
    STORAGE,
    write_clusters,
    write_data,
    write_finetuning,
    write_pipeline,
    write_pretraining,
    write_scores,
)

HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>.jpg'
SECTIONS = [
    "results",
    "data",
    "cfs",
    "pretraining",
    "clusters",
    "finetuning",
    "rankings",
    "attention",
    "stages",
    "provenance",
    "configuration",
]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("report") / "whole", hostile=HOSTILE)


@pytest.fixture(scope="module")
def page(pipeline: Path) -> str:
    return Path(main(ReportConfig(run=str(pipeline))).path).read_text()


class Elements(HTMLParser):
    """Parses a page like a browser: `found` holds (name, attributes) of every element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', html)


def section(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def figures(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def pictures_in(html: str) -> list[Image.Image]:
    found = re.findall(r'"data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data in found]


def summary(root: Path, name: str) -> dict:
    return json.loads((root / name / "summary.json").read_text())


def test_a_whole_pipeline_has_every_section_and_misses_nothing(page: str) -> None:
    assert sections(page) == SECTIONS
    assert 'id="missing"' not in page
    for name in SECTIONS:
        assert f'href="#{name}"' in page


def test_the_page_stands_alone_and_is_small(pipeline: Path, page: str) -> None:
    elements = Elements(page).found
    assert not {name for name, _ in elements} & {"script", "link", "iframe", "object", "embed", "form", "base", "use"}
    references = [
        value
        for _, attributes in elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert len(references) > 60 and all(one.startswith(("data:image/jpeg;base64,", "#")) for one in references)
    styles = page.partition("<style>")[2].partition("</style>")[0] + "".join(a.get("style", "") for _, a in elements)
    assert "url(" not in styles and "@import" not in styles
    assert "default-src 'none'" in page
    assert (pipeline / "report.html").stat().st_size < 4_000_000


def test_every_result_is_in_the_table(pipeline: Path, page: str) -> None:
    table = section(page, "results").partition("<table>")[2].partition("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr")[2:]]
    assert len(rows) == 9
    for row, (setting, init) in zip(
        rows, [(s, i) for s in ("supervised", "uda", "usl") for i in ("random", "full", "selected")], strict=True
    ):
        values = summary(pipeline, f"finetune/{setting}-{init}")
        baseline = summary(pipeline, f"finetune/{setting}-random")["mAP"]
        for name in ("mAP", "rank1", "rank5", "rank10", "mINP"):
            assert f"{100 * values[name]:.1f}" in row
        assert init in row
        gain = "–" if init == "random" else f"{100 * (values['mAP'] - baseline):+.1f}".replace("-", "−")
        assert gain in row
        if setting != "supervised":
            assert row[-1] == str(values["clusters"])


def test_no_single_run_is_called_the_best(page: str) -> None:
    results = section(page, "results")
    assert "badge" not in page and "best" not in results and "one seed" in page


def test_what_fine_tuning_adds_and_the_spread_over_seeds(pipeline: Path) -> None:
    """Three runs that differ in their seed are one row; another setting is another row."""
    folder = read_folder(str(pipeline), StorageConfig())
    one = next(member for member in folder.members if member.name == "finetune/usl-full")
    values = [0.4, 0.5, 0.9]
    runs = [
        replace(
            one,
            config=one.config | {"seed": seed},
            summary=one.summary | {"mAP": value, "start": {"mAP": 0.1 * seed}, "warnings": ["x"] * (seed == 2)},
        )
        for seed, value in enumerate(values)
    ]
    other = replace(one, config=one.config | {"evaluate_every": 7})
    rows = result_rows(replace(folder, members=[*runs, other], results={}))
    assert [row.seeds for row in rows] == [3, 1] and rows[0].values["mAP"] == pytest.approx(0.6)
    assert (rows[0].spread, rows[0].start) == (pytest.approx(np.std(values, ddof=1)), pytest.approx(0.1))
    assert rows[0].doubtful and rows[1].spread is None and rows[0].first_of == 2


def test_a_pipeline_of_several_seeds_shows_the_first_and_the_means(pipeline: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(pipeline / "data", root / "data")
    open_run(
        "pipeline",
        str(root),
        load_config(PipelineConfig, "pipeline", [f"output={root}", "experiment=demo", "seeds=[4,7]"]),
        STORAGE,
    )
    for seed in (4, 7):
        for name in ("proxy", "scores", "selection", "pretrain", "finetune"):
            shutil.copytree(pipeline / name, root / f"seed-{seed}" / name)
        file = root / f"seed-{seed}" / "finetune" / "usl-full" / "config.json"
        about = json.loads(file.read_text())
        about["config"]["checkpoint"] = str(root / f"seed-{seed}" / "pretrain" / "full")
        file.write_text(json.dumps(about))
    folder = read_folder(str(root), STORAGE)
    assert folder.named("finetune/usl-full") and len(folder.repeats) == len(folder.members) - 1  # but the pipeline itself
    rows = result_rows(folder)
    assert [(row.init, row.seeds) for row in rows if row.setting == "usl"] == [("random", 2), ("full", 2), ("selected", 2)]
    text = render(folder)
    assert "The charts show seed 4; the table of results has the means over this and seed 7" in text and "Not there" not in text


def test_pictures_decode_and_every_ranking_is_shown(pipeline: Path, page: str) -> None:
    found = pictures_in(page)
    assert len(found) > 60
    for image in found:
        image.load()
        assert 0 < image.width <= 128 and 0 < image.height <= pictures.ATTENTION_HEIGHT
    rankings = section(page, "rankings")
    strips = figures(rankings)
    assert len(strips) == 3 * pictures.QUERIES  # each query with each of the three inits
    files = [pipeline / "finetune" / f"usl-{init}" / "rankings.json" for init in ("random", "full", "selected")]
    entries = [{entry["query"]: entry for entry in json.loads(file.read_text())} for file in files]
    first = next(iter(entries[0]))
    for strip, own in zip(strips[:3], entries, strict=True):
        titles = [element.text or "" for element in strip.iter(f"{SVG}title")]
        expected = [
            f"{place}. {'right' if right else 'wrong'}: {key}"
            for place, (key, right) in enumerate(zip(own[first]["matches"], own[first]["correct"], strict=True), 1)
        ]
        assert titles == expected
        assert len(list(strip.iter(f"{SVG}image"))) == len(expected)


def test_names_from_files_cannot_become_markup(page: str) -> None:
    elements = Elements(page).found
    assert "script" not in {name for name, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page  # the query with this key is shown in the page


def test_synthetic_people_are_called_a_test_bed(page: str) -> None:
    assert "Synthetic people are a test bed." in page
    assert "pretrain, source, target" in re.sub(r"\s+", " ", page)


def test_scores_are_reported_as_they_are(pipeline: Path, page: str) -> None:
    cfs, scores, chosen = section(page, "cfs"), summary(pipeline, "scores"), summary(pipeline, "selection")
    assert f"AUC {scores['auc_planted']:.3f}" in cfs
    assert f"from a score of {chosen['threshold']:.4f}" in cfs
    assert f"{100 * chosen['planted_share']['selected']:.1f} % of the selected" in cfs
    assert "not label-free" in cfs
    histogram = figures(cfs)[0]
    legend = [element.text for element in histogram.iter(f"{SVG}text")]
    assert "people (36)" in legend and "planted useless images (12)" in legend
    shown = [float(value) for value in re.findall(r'alt="[^"]*">(-?\d\.\d{3})', cfs)]
    top, bottom = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    assert len(shown) == 2 * pictures.SAMPLES
    assert top == sorted(top, reverse=True) and bottom == sorted(bottom) and min(top) >= max(bottom)


def test_scores_are_called_by_the_measure_that_made_them(tmp_path: Path) -> None:
    """There are two further selections: a control, and one by other scores with another threshold."""
    data = write_data(tmp_path / "run" / "data" / "pretrain", "pretrain")
    root = tmp_path / "run"
    write_pretraining(root / "proxy" / "source", Path(data.path))
    write_data(root / "data" / "target", "target")
    write_finetuning(root / "proxy" / "target", root / "data" / "target", "usl", "x")
    scores = write_scores(root / "scores", Path(data.path), root / "proxy" / "source", root / "proxy" / "target")
    about = summary(root, "scores")
    scores.finish(
        about
        | {
            "measure": "neighborhood",
            "k": 7,
            "search": "exact",
            "source_proxy": "s",
            "target_proxy": "t",
            "proxies": {"source": {"weights": "0123456789ab"}, "target": {"weights": "ba9876543210", "setting": "usl"}},
        }
    )
    select(SelectConfig(output=str(root / "selection"), scores=str(root / "scores"), data=data.uri, fraction=0.25))
    select(SelectConfig(output=str(root / "selection-control"), random=True, seed=5, data=data.uri, fraction=0.25))
    page = render(read_folder(str(root), STORAGE))
    cfs = section(page, "cfs")
    assert "share of the 7 nearest images that the two proxies agree on" in cfs and "cosine" not in cfs
    assert "so the selection is label-free" in cfs and "0123456789ab" in cfs and "ba9876543210" in cfs
    assert "chance (seed 5), the control" in cfs and "score (neighborhood)" in cfs
    assert f"from a score of {summary(root, 'selection')['threshold']:.4f}" in cfs


@pytest.mark.parametrize("recorded", [{"query_expansion": 5}, {"evaluation": {"expansion": {"images": 5, "alpha": 3.0}}}])
def test_query_expansion_is_shown_with_the_figures(tmp_path: Path, recorded: dict) -> None:
    write_data(tmp_path / "target", "target")
    run = write_finetuning(tmp_path / "run", tmp_path / "target", "usl", "x")
    assert "and without query expansion" in re.sub(r"\s+", " ", render(read_folder(str(tmp_path / "run"), STORAGE)))
    found = run.summary or {}
    run.finish({name: value for name, value in found.items() if name != "evaluation"} | recorded)
    page = re.sub(r"\s+", " ", render(read_folder(str(tmp_path / "run"), STORAGE)))
    assert "query expansion 5</small>" in page and "without query expansion" not in page
    assert "without; query expansion 5" in page  # provenance: re-ranking, expansion


def test_the_provenance_names_how_test_images_were_scaled(tmp_path: Path) -> None:
    write_data(tmp_path / "target", "target")
    run = write_finetuning(tmp_path / "run", tmp_path / "target", "usl", "x")
    assert "bilinear" not in render(read_folder(str(tmp_path / "run"), STORAGE))
    run.finish((run.summary or {}) | {"evaluation": {"resize": "bilinear"}})
    assert ", bilinear</td>" in render(read_folder(str(tmp_path / "run"), STORAGE))


def test_charts_hold_all_runs(pipeline: Path) -> None:
    folder = read_folder(str(pipeline), StorageConfig())
    titles = {}
    for svg in charts.pretrain_charts(folder):
        labels = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
        titles[labels[0]] = labels
    for title in (
        "Loss",
        "Learning rate",
        "Teacher momentum",
        "Weight decay",
        "Teacher entropy (nats)",
        "Images per second",
        "Feature standard deviation",
        "Probe: cross-camera mAP",
        "Probe: nearest neighbor, same camera",
    ):
        assert {"full", "selected", "proxy"} <= set(titles[title])
    assert "indifferent: ln 256" in titles["Teacher entropy (nats)"]
    clusters = dict(charts.cluster_charts(folder))
    assert list(clusters) == ["UDA", "USL"] and all(len(own) == 3 for own in clusters.values())
    phases = ["Supervised", "UDA, labeled source", "UDA, unlabeled target", "USL"]
    assert [name for name, _ in charts.finetune_charts(folder)] == phases


@pytest.mark.parametrize(
    ("settings", "metric", "expected"),
    [
        ({"name": "dino", "dino": {"out_dim": 256}}, "teacher_entropy", "ln 256"),
        ({"name": "dino_mim", "dino_mim": {"out_dim": 128, "shared_head": True, "patch_out_dim": 64}}, "patch_entropy", "ln 128"),
        ({"name": "dino_mim", "dino_mim": {"out_dim": 128, "shared_head": False, "patch_out_dim": 64}}, "patch_entropy", "ln 64"),
        ({"name": "moby", "moby": {"queue_size": 4096}}, "teacher_entropy", "ln 4,097"),
        ({"name": "moco_v3"}, "teacher_entropy", "ln 32"),
        ({"name": "another"}, "teacher_entropy", None),
    ],
)
def test_entropy_has_the_line_of_its_objective(tmp_path: Path, settings, metric, expected) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {"objective": settings, "stream": {"micro_batch": 32}}
    (run / "config.json").write_text(json.dumps({"program": "pretrain", "config": config}))
    (run / "metrics.jsonl").write_text(json.dumps({"position": 64, metric: 3.0}) + "\n")
    (svg,) = charts.pretrain_charts(read_folder(str(run), StorageConfig()))
    lines = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text") if "indifferent" in (element.text or "")]
    assert lines == ([f"indifferent: {expected}"] if expected else [])


def test_unknown_metrics_get_a_chart_of_their_own(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "pretrain")
    run = write_pretraining(tmp_path / "run", tmp_path / "data", steps=2)
    rows = [{"position": 64, "loss": 1.0, "gate_share": 0.5}, {"position": 128, "loss": 0.5, "gate_share": 0.7}]
    (run.location / "metrics.jsonl").write_bytes("\n".join(map(json.dumps, rows)).encode())
    found = charts.pretrain_charts(read_folder(str(tmp_path / "run"), StorageConfig()))
    assert any(">Gate share<" in svg for svg in found)


def test_a_run_without_probe_figures_has_no_word_of_a_probe(page: str, tmp_path: Path) -> None:
    write_pretraining(tmp_path / "run", tmp_path / "data", steps=3)  # the log's first row with a probe is its fourth
    alone = Path(main(ReportConfig(run=str(tmp_path / "run"))).path).read_text()
    assert "Probe" not in alone and "The probe" not in alone and "Teacher entropy" in alone
    assert "The probe does" in page


def test_provenance_names_versions_splits_sizes_seeds_and_weights(pipeline: Path, page: str) -> None:
    table = section(page, "provenance")
    for name in ("finetune/usl-full", "finetune/supervised-random"):
        assert summary(pipeline, name)["weights"] in table
    manifest = json.loads((pipeline / "data" / "target" / "manifest.json").read_text())
    assert manifest["checksum"][:12] in table and f"{SIZE[0]} × {SIZE[1]}" in table
    assert "without" in table and "before the neck" in table
    values = summary(pipeline, "finetune/usl-full")
    assert f"{values['queries']:,} queries, {values['gallery']:,} gallery" in table
    assert summary(pipeline, "finetune/usl-full")["environment"]["torch"] in table
    configuration = section(page, "configuration")
    assert configuration.count("<details>") == 15 and "teacher_temperature: 0.04" in configuration


def test_the_people_of_a_data_set_are_counted_without_distractors(tiny_labeled, tmp_path: Path) -> None:
    """Numbers 0, 1 and 2 in every split of Market-1501: 0 is nobody, the others are people to train on and others to test on."""
    market = with_labels(tiny_labeled, open_storage(str(tmp_path)), lambda row, *_: (row % 3, 0), source={"kind": "market1501"})
    folder = RunFolder(market, [], {"target": DataSet("target", market, read_manifest(market))})
    assert [(row.kind, row.people, row.cameras) for row in tables.data_rows(folder)] == [("market1501", 4, 1)]


def test_stages_have_their_times(page: str) -> None:
    stages = section(page, "stages")
    assert "4 min 12 s" in stages and "3.2 s" in stages and "4 min 15 s" in stages


def test_a_pipeline_in_the_middle_says_what_is_missing(pipeline: Path, tmp_path: Path) -> None:
    root = tmp_path / "part"
    shutil.copytree(pipeline, root)
    for name in ("finetune", "selection", "pretrain/selected", "results.json", "report.html"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "pretrain" / "full" / "summary.json").unlink()
    page = Path(main(ReportConfig(run=str(root))).path).read_text()
    assert sections(page) == ["data", "cfs", "pretraining", "finetuning", "attention", "provenance", "configuration"]
    notes = page.partition('id="missing"')[2].partition("</div>")[0]
    for note in (
        "the selected subset (selection)",
        "pre-training on the selected images",
        "fine-tuning, usl, from random, full, selected",
        "Not finished: pretrain/full; its log ends at 768 images seen",
    ):
        assert note in notes
    assert "proxy/target" not in notes


def test_the_page_of_a_running_run_reloads_itself(pipeline: Path, page: str, tmp_path: Path, capsys) -> None:
    assert 'http-equiv="refresh"' not in page  # complete
    run = tmp_path / "run"
    shutil.copytree(pipeline / "pretrain" / "full", run)
    summary = (run / "summary.json").read_bytes()
    (run / "summary.json").unlink()
    assert '<meta http-equiv="refresh" content="60">' in Path(main(ReportConfig(run=str(run))).path).read_text()
    threading.Timer(0.5, (run / "summary.json").write_bytes, [summary]).start()
    page = Path(main(ReportConfig(run=str(run), every_s=0.2)).path).read_text()  # ends by itself
    printed = capsys.readouterr().out
    assert "refresh" not in page and "again in 0.2 s" in printed and "it reloads itself every 60 s" in printed


def test_the_report_of_a_killed_run_ends(pipeline: Path, tmp_path: Path, capsys) -> None:
    """A killed run has no summary."""
    run = tmp_path / "run"
    shutil.copytree(pipeline / "pretrain" / "full", run)
    (run / "summary.json").unlink()
    page = Path(main(ReportConfig(run=str(run), every_s=0.1, quiet_s=0.3)).path).read_text()
    printed = capsys.readouterr().out
    assert "again in 0.1 s" in printed and f"no file of {run} has changed for 0.3 s: the run was ended" in printed
    assert "refresh" not in page and "it reloads itself" not in printed


def test_the_files_of_a_run_are_watched_not_its_page(pipeline: Path, monkeypatch) -> None:
    folder, now = read_folder(str(pipeline), StorageConfig()), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch, patient = Watch(60), Watch(0)

    def later(seconds: float, *files: tuple[str, int]) -> bool:
        now[0] += seconds
        assert not patient.has_ended(folder)
        return watch.has_ended(replace(folder, files=[*folder.files, *files]))

    assert not later(0) and not later(59)
    assert not later(2, ("metrics.jsonl", 10)) and not later(59, ("metrics.jsonl", 10))
    assert not later(30, ("metrics.jsonl", 12)) and not later(59, ("metrics.jsonl", 12), ("report.html", 5))
    assert later(1, ("metrics.jsonl", 12), ("report.html", 6))


def test_the_report_of_a_pipeline_does_not_wait_for_its_own_stage(pipeline: Path, tmp_path: Path) -> None:
    """The report is the last stage of a pipeline: when it is made, the pipeline has no summary yet."""
    root = tmp_path / "run"
    shutil.copytree(pipeline, root)
    (root / "summary.json").unlink(missing_ok=True)
    stages = json.loads((root / "results.json").read_text())
    stages["stages"]["report"] = {"status": "running", "seconds": 0.0}
    (root / "results.json").write_text(json.dumps(stages))
    assert not is_running(read_folder(str(root), StorageConfig()))
    stages["stages"]["score"] = {"status": "running", "seconds": 0.0}
    (root / "results.json").write_text(json.dumps(stages))
    assert is_running(read_folder(str(root), StorageConfig()))


def test_broken_parts_are_noted_and_the_rest_is_shown(pipeline: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(pipeline, root)
    (root / "pretrain" / "full" / "backbone.safetensors").write_bytes(b"not a model")
    (root / "finetune" / "usl-random" / "rankings.json").write_text('[{"no query": 1}]')
    (root / "pretrain" / "selected" / "config.json").write_text("{ torn")
    for shard in (root / "data" / "target").glob("shard-*"):
        shard.unlink()
    page = Path(main(ReportConfig(run=str(root))).path).read_text()
    notes = page.partition('id="missing"')[2].partition("</div>")[0]
    for part in (
        "The model of pretrain/full cannot be loaded",
        "The rankings of finetune/usl-random cannot be read",
        "The run pretrain/selected cannot be read",
        "The target data set cannot be read",
        "The images of the rankings cannot be read",
    ):
        assert part in notes
    assert "no image" in section(page, "rankings")  # correct matches are known without the images
    assert len(re.findall("<tr", section(page, "results"))) == 10


def test_a_single_pretraining(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "pretrain")
    write_pretraining(tmp_path / "first", tmp_path / "data")
    target = main(ReportConfig(run=str(tmp_path / "first"), output=str(tmp_path / "elsewhere" / "first.html")))
    assert target.uri == str(tmp_path / "elsewhere" / "first.html")
    page = Path(target.path).read_text()
    assert sections(page) == ["data", "pretraining", "attention", "provenance", "configuration"]
    assert "Self-supervised pre-training" in page and 'id="missing"' not in page
    # one row of overlays below the row of images, and the overlays differ from the images
    images = pictures_in(section(page, "attention"))
    assert len(images) == 2 * pictures.ATTENTION_IMAGES
    assert np.asarray(images[0]).shape != np.asarray(images[-1]).shape or not np.array_equal(images[0], images[-1])


@pytest.mark.parametrize("finished", [True, False])
def test_a_single_fine_tuning(tmp_path: Path, finished: bool) -> None:
    write_data(tmp_path / "target", "target")
    write_finetuning(tmp_path / "tuned", tmp_path / "target", "usl", "runs/first", finished=finished)
    folder = read_folder(str(tmp_path / "tuned"), StorageConfig())
    page = render(folder)
    shown = ["data", "clusters", "finetuning", "provenance", "configuration"]
    assert sections(page) == (["results", *shown[:3], "rankings", "attention", *shown[3:]] if finished else shown)
    assert "Fine-tuning: USL" in page and folder.members[0].init == "first"
    assert ("Not finished: tuned; its log ends at epoch 6" in page) is not finished


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("metrics.jsonl", "no row\n", r"metrics\.jsonl, line 1: b'no row.n' is not a row of metrics"),
        ("summary.json", "[1]", r"summary\.json is of type list where an object belongs"),
        (
            "config.json",
            '{"program": "finetune", "config": 5}',
            r"'config' in .*config\.json is of type int where an object belongs",
        ),
    ],
    ids=["log", "summary", "configuration"],
)
def test_a_damaged_run_is_noted_beside_a_whole_one(tmp_path: Path, file: str, content: str, reason: str) -> None:
    write_data(tmp_path / "target", "target")
    write_finetuning(tmp_path / "runs" / "whole", tmp_path / "target", "usl", "runs/first")
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "damaged")
    (tmp_path / "runs" / "damaged" / file).write_text(content)
    folder = read_folder(str(tmp_path / "runs"), StorageConfig())
    assert [one.name for one in folder.members] == ["whole"]
    assert any(re.search(f"^The run damaged cannot be read: .*{reason}", note) for note in folder.notes)
    assert "The run damaged cannot be read" in render(folder)
    with pytest.raises(UserError, match=rf"no run in .*damaged can be read\. The run damaged cannot be read: .*{reason}"):
        read_folder(str(tmp_path / "runs" / "damaged"), StorageConfig())


def test_trials_that_are_no_list_are_noted(tmp_path: Path) -> None:
    write_data(tmp_path / "target", "target")
    write_finetuning(tmp_path / "tuned", tmp_path / "target", "usl", "runs/first")
    (tmp_path / "tuned" / "trials.json").write_text("7")
    notes = read_folder(str(tmp_path / "tuned"), StorageConfig()).notes
    assert any(re.search(r"The trials cannot be read: .*trials\.json is of type int, not a list", note) for note in notes)


def test_a_doubtful_run_is_named(tmp_path: Path) -> None:
    write_data(tmp_path / "target", "target")
    run = write_finetuning(tmp_path / "tuned", tmp_path / "target", "usl", "runs/first")
    assert "Doubtful" not in render(read_folder(str(tmp_path / "tuned"), StorageConfig()))
    run.finish((run.summary or {}) | {"warnings": ["nothing was trained: the figures are those of the start"]})
    page = render(read_folder(str(tmp_path / "tuned"), StorageConfig()))
    assert "Doubtful: tuned: nothing was trained: the figures are those of the start." in page


def test_pseudo_identities_of_a_pipeline_without_a_target_set(tmp_path: Path) -> None:
    """Clusters of 3, 2 and 1 images are shown, the largest first. The page has no gaps for scores, selection or fine-tuning."""
    given = PipelineConfig(settings=[], pretrain_set=RawConfig(kind="synthetic"))
    open_run("pipeline", str(tmp_path), given, StorageConfig())
    data = tmp_path / "data" / "pretrain"
    write_data(data, "pretrain")
    write_pretraining(tmp_path / "pretrain" / "full", data)
    write_clusters(tmp_path / "clusters", data, [7, 2, 2, -1, 5, 5, 5])
    page = Path(main(ReportConfig(run=str(tmp_path))).path).read_text()
    shown = section(page, "identities")
    assert re.findall(r"<h3>(\d+) images</h3>", shown) == ["3", "2", "1"] and len(pictures_in(shown)) == 6
    assert "3 clusters of 48 images" in shown and "42 outliers" in shown
    assert 'id="missing"' not in page and "Pre-training and pseudo-identities" in page
    shutil.rmtree(tmp_path / "clusters")
    page = render(read_folder(str(tmp_path), StorageConfig()))
    assert "Not there: the pseudo-identities (clusters)." in page and "the target proxy" not in page


def test_a_single_clustering(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "pretrain")
    write_clusters(tmp_path / "clusters", tmp_path / "data", [0] * 40)
    page = Path(main(ReportConfig(run=str(tmp_path / "clusters"))).path).read_text()
    assert sections(page) == ["data", "identities", "provenance", "configuration"]
    assert len(pictures_in(section(page, "identities"))) == pictures.CLUSTER_IMAGES and 'id="missing"' not in page
    (tmp_path / "clusters" / "labels.parquet").write_bytes(b"torn")
    page = render(read_folder(str(tmp_path / "clusters"), StorageConfig()))
    assert "The images of the pseudo-identities cannot be read" in page


def test_an_unreadable_data_set_is_noted(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "pretrain")
    write_pretraining(tmp_path / "run", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    page = render(read_folder(str(tmp_path / "run"), StorageConfig()))
    assert "The pretrain data set cannot be read" in page
    assert sections(page) == ["pretraining", "provenance", "configuration"]


def test_images_are_found_by_key_across_row_groups(pipeline: Path) -> None:
    data = read_folder(str(pipeline), StorageConfig()).data["pretrain"]
    from platform.engine.data.shards import read_rows

    rows = read_rows(data.location, ["key", "image"])
    expected = dict(zip(rows["key"].to_pylist(), rows["image"].to_pylist(), strict=True))
    keys = [rows["key"][place].as_py() for place in (0, 15, 16, 33, 47)]  # row groups hold 16
    assert pictures.images_of(data, [*keys, "nobody.jpg"]) == {key: expected[key] for key in keys}


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no run in .*empty.*platform\.pretrain"):
        main(ReportConfig(run=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="does not exist"):
        main(ReportConfig(run=str(tmp_path / "absent")))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        main(ReportConfig(run=str(tmp_path / "file")))
    with pytest.raises(UserError, match="run is empty"):
        main(ReportConfig(run=""))


def test_the_output_can_be_another_folder_and_the_configuration_composes(tmp_path: Path) -> None:
    write_data(tmp_path / "data", "pretrain")
    write_pretraining(tmp_path / "run", tmp_path / "data")
    config = load_config(ReportConfig, "report", [f"run={tmp_path / 'run'}", f"output={tmp_path / 'pages'}"])
    assert main(config) == open_storage(str(tmp_path / "pages" / "report.html"))
    assert (tmp_path / "pages" / "report.html").exists() and not (tmp_path / "run" / "report.html").exists()


def test_a_run_in_object_storage_gives_the_same_page(pipeline: Path, page: str, s3) -> None:
    storage = StorageConfig(endpoint_url=s3.endpoint_url)
    root = open_storage(f"{s3.uri}/runs/whole", storage)
    for file in filter(Path.is_file, pipeline.rglob("*")):
        root.joinpath(*file.relative_to(pipeline).parts).write_bytes(file.read_bytes())
    found = main(ReportConfig(run=root.uri, storage=storage)).read_text()
    assert sections(found) == SECTIONS and 'id="missing"' not in found
    for name in ("results", "cfs", "rankings", "attention", "stages", "provenance"):
        assert section(found, name) == section(page, name)


def test_the_curve_of_agreement_needs_a_comparison() -> None:
    curve = charts.agreement_curve({"agreement": {"overlaps": {"0.5": 0.8, "0.05": 0.3, "0.9": 0.95}}})
    assert curve is not None and "Overlap with the reference ranking" in curve and "by chance" in curve
    assert charts.agreement_curve({"agreement": {"overlaps": {}}}) is None is charts.agreement_curve(None)
