"""The page of a sweep with 50 trials: every trial is drawn, labels do not overlap, means over seeds."""

import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from platform.engine.report.contents import read_folder
from platform.engine.report.plots.bars import grouped_bars
from platform.engine.report.plots.svg import text_width
from platform.engine.report.sweeps import binned, heat_maps, parallel_chart, table_rows
from platform.engine.storage.location import StorageConfig
from platform.engine.sweep.results import short_names
from platform.report import render

SVG = "{http://www.w3.org/2000/svg}"


def write_sweep(root: Path, trials: int, hostile: str = "") -> list[dict]:
    """A sweep's folder with logs and results as platform.tune writes them."""
    chance = random.Random(0)
    rows = []
    for number in range(trials):
        point = {
            "checkpoint": chance.choice([f"/data/runs/a_rather_long_name_{name}{hostile}" for name in ("full", "selected")]),
            "supervised.learning_rate": float(f"{10 ** chance.uniform(-5, -2):.4g}"),
            "supervised.drop_path": round(chance.uniform(0, 0.5), 3),
            "setting": chance.choice(["supervised", "usl"]),
        }
        value = 0.2 + 0.3 * chance.random()
        folder = root / "trials" / f"trial{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"program": "finetune", "config": {"setting": point["setting"]}}))
        logged = [{"position": e, "epoch": e, "phase": 0, "mAP": value * e / 4} for e in range(5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
        metrics = {name: value for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}
        (folder / "summary.json").write_text(json.dumps(metrics | {"warnings": []}))
        doubtful = ["near chance"] * (number == 3)
        rows.append(
            {"point": point, "folder": str(folder), "state": "finished", "reason": "", "start": {"mAP": 0.1}, **metrics}
            | {"clusters": 5, "warnings": doubtful}
        )
    rows[0] |= {"state": "failed", "reason": "the loss is not finite"}
    (root / "trials.json").write_text(json.dumps(rows))
    (root / "config.json").write_text(json.dumps({"program": "tune", "config": {"metric": "mAP"}}))
    (root / "summary.json").write_text("{}")
    return rows


def names_of(rows: list[dict]) -> dict[str, str]:
    keys = list(rows[0]["point"])
    return dict(zip(keys, short_names(keys), strict=True))


def boxes(svg: str) -> list[tuple[float, float, float, float, str]]:
    """(left, top, right, bottom, text) of every upright text."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        style = element.attrib["style"]
        size = float(re.search(r"font-size:([\d.]+)px", style)[1])
        width, x, y = text_width(element.text or "", size), float(element.attrib["x"]), float(element.attrib["y"])
        left = {"start": x, "middle": x - width / 2, "end": x - width}[re.search(r"text-anchor:(\w+)", style)[1]]
        found.append((left, y - 0.75 * size, left + width, y, element.text or ""))
    return found


def overlaps(svg: str) -> list[tuple[str, str]]:
    every = boxes(svg)
    return [
        (one[4], other[4])
        for number, one in enumerate(every)
        for other in every[:number]
        if min(one[2], other[2]) - max(one[0], other[0]) > 1 and min(one[3], other[3]) - max(one[1], other[1]) > 1
    ]


def test_fifty_trials_are_drawn_without_overlapping_labels(tmp_path):
    rows = write_sweep(tmp_path, 50)[1:]
    names = names_of(rows)
    chart = parallel_chart(rows, names, "mAP")
    assert len(list(ElementTree.fromstring(chart).iter(f"{SVG}polyline"))) == 49
    maps = heat_maps(rows, names, "mAP")
    assert len(maps) == 6  # every pair of four settings
    for svg in (chart, *maps):
        assert overlaps(svg) == []
        width = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[2])
        assert all(left >= 0 and right <= width + 1 for left, _, right, _, _ in boxes(svg))


def test_bars_that_are_too_narrow_for_their_labels_have_turned_ones():
    few = grouped_bars([("USL", [(f"a_rather_long_name_{n}", 0.5, 1) for n in range(3)])], title="x", size=(400, 290))
    many = grouped_bars([("USL", [(f"name {n}", 0.5, 1) for n in range(30)])], title="x", size=(880, 290))
    assert overlaps(few) == [] and "rotate" not in few and "a_rather_long_name_2: 50.0" in few
    assert many.count("rotate(-90") == 60


def test_the_page_of_a_sweep(tmp_path):
    rows = write_sweep(tmp_path, 50, hostile="<script>")
    folder = read_folder(str(tmp_path), StorageConfig())
    assert len(folder.trials) == 50 and len(folder.of("finetune")) == 1  # the best one alone is shown as a run
    page = render(folder)
    best = max(rows[1:], key=lambda row: row["mAP"])
    assert "Sweep over fine-tuning, 50 trials" in page and "failed: " in page and "the loss is not finite" in page
    assert f"{100 * best['mAP']:.1f}" in page and "34 more" in page and "Doubtful: 1 of 50 trials" in page
    assert "1 of 1 doubtful" in page and "<script>" not in page
    curves = page.partition("Learning curves")[2].partition("</svg>")[0]
    assert curves.count("<polyline") == 49 and curves.count("stroke-opacity:.45") == 46


def test_rows_are_means_over_seeds():
    rows = [
        {"point": {"seed": seed, "eps": eps}, "state": "finished", "reason": "", "mAP": value, "start": {"mAP": 0.1}}
        for eps, values in {0.4: (0.2, 0.4), 0.5: (0.5, 0.7)}.items()
        for seed, value in enumerate(values)
    ]
    first, second = table_rows(rows, "mAP")
    assert (first["values"], first["seeds"], first["before"]) == (["0.5"], 2, pytest.approx(0.1))
    assert first["mean"] == pytest.approx(0.6) and first["spread"] == pytest.approx(math.sqrt(0.02))
    assert second["mean"] == pytest.approx(0.3)


def test_many_numbers_are_binned():
    values = [10 ** (-5 + 3 * number / 49) for number in range(50)]
    found = binned(values)
    assert len(set(found)) == 6 and found == sorted(found) and found[0] == 1e-5
    assert max(found.count(each) for each in set(found)) <= 10  # logarithmic: evenly filled
    even = binned([number / 49 + 0.001 for number in range(50)])
    assert max(even.count(each) for each in set(even)) <= 10  # linear, though the largest is 1,000 times the smallest
    assert binned([1, 2, 3]) == [1, 2, 3] and binned(["b", "a"]) == ["b", "a"]
