"""Write a run folder as one HTML page: results, curves, scores, rankings, attention, settings.

  python -m platform.report run=runs/demo                       -> runs/demo/report.html
  python -m platform.report run=s3://bucket/runs/first storage=s3
  python -m platform.report run=runs/first output=first.html    (one pre-training or fine-tuning run)
  python -m platform.report run=runs/first every_s=60           (anew every minute while it runs; the page reloads itself)

The page needs no network and no other file. It can be made from the folder of a pipeline, finished or not, or of a single run.
It has a section for every result that exists and lists what is missing.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("report")

import time
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from platform.cluster import read_labels
from platform.engine.config.compose import ROOT
from platform.engine.config.paths import in_job_copy
from platform.engine.data.shards import read_rows
from platform.engine.errors import StorageError, UserError
from platform.engine.report import charts, pictures, tables
from platform.engine.report import selections as selections
from platform.engine.report.contents import RunFolder, read_folder
from platform.engine.report.results import ResultRow, result_rows, setting_title
from platform.engine.report.sweeps import sweep_section
from platform.engine.report.watch import Watch, is_running
from platform.engine.runtime.rate import duration
from platform.engine.runtime.terminal import say
from platform.engine.schemas.report_settings import ReportConfig
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import Location, open_storage

TEMPLATES, TEMPLATE, PAGE = ROOT / "platform" / "engine" / "report", "report.html.j2", "report.html"
RELOAD_S = 60


def main(config: ReportConfig) -> Location:
    """Write the page and return its location. Raises UserError for a folder without any run."""
    if not config.run:
        raise UserError("run is empty: name the folder of a run, e.g. run=runs/demo")
    if not config.output and in_job_copy(config.run):
        raise UserError(
            "output is empty, and the folder of this job, where the page would go, is Ray's temporary copy of what "
            "was submitted: give output=s3://bucket/prefix, or an absolute path that every node sees"
        )
    folder = read_folder(config.run, config.storage)
    target, watch = page_location(config), Watch(config.quiet_s)
    while True:
        running = is_running(folder)
        if running and config.every_s and watch.has_ended(folder):
            say(f"report: {watch.text(folder)}")
            running = False  # the last page does not reload itself
        page = render(folder, reload_s=(config.every_s or RELOAD_S) if running else 0).encode("utf-8")
        target.write_bytes(page)
        if not (running and config.every_s):
            break
        say(f"report: {target.uri} ({len(page) / 1e6:.1f} MB); again in {config.every_s:g} s, until the run is complete")
        time.sleep(config.every_s)
        folder = read_folder(config.run, config.storage)
    say(f"report: {target.uri} ({len(page) / 1e6:.1f} MB)" + f"; it reloads itself every {RELOAD_S} s" * running)
    return target


def page_location(config: ReportConfig) -> Location:
    """Location of the page to write. Raises StorageError if it cannot be written there."""
    target = open_storage(config.output or config.run, config.storage)
    if not target.name.endswith((".html", ".htm")):
        target = target / PAGE
    elif target.exists() and not target.is_file():
        raise StorageError(f"cannot write {target.uri}: it is a folder; name a file, or a folder without .html in its name")
    target.parent.prepare_output()
    return target


def render(folder: RunFolder, reload_s: float = 0) -> str:
    """The page as HTML. The template escapes all text that comes from files.

    reload_s: seconds after which a browser loads the page again; 0: never.
    """
    setting, queries = pictures.galleries(folder)
    models, hashes = pictures.attention_models(folder, setting)
    results = result_rows(folder)
    context: dict[str, Any] = {
        "title": folder.location.name,
        "reload_s": round(reload_s),
        "uri": folder.location.uri,
        "kind": kind_of(folder),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "results": results,
        "result_bars": charts.result_bars(folder) if len(results) > 1 else None,
        "has_seeds": any(row.seeds > 1 for row in results),
        "has_expansion": any(row.expansion for row in results),
        "has_reranked": any(row.reranked is not None for row in results),
        "has_clusters": any(row.clusters is not None for row in results),
        "cfs": cfs_section(folder),
        "identities": cluster_section(folder),
        "pretrain_charts": charts.pretrain_charts(folder),
        "objectives": sorted({str(one.setting_of("objective", "name")) for one in folder.of("pretrain")} - {"None"}),
        "has_probe": any("probe_mAP" in row for one in folder.of("pretrain") for row in one.metrics),
        "has_proxy": folder.named("proxy/source") is not None,
        "cluster_charts": charts.cluster_charts(folder),
        "finetune_charts": charts.finetune_charts(folder),
        "sweep": sweep_section(folder),
        "gallery_setting": setting_title(setting),
        "queries": queries,
        "attention": pictures.attention_maps(folder, models),
        "data": tables.data_rows(folder),
        "stages": tables.stage_rows(folder),
        "provenance": tables.provenance_rows(folder, hashes),
        "environment": tables.environments(folder),
        "configurations": tables.configurations(folder),
        "facts": facts(folder, results),
        "synthetic": [role for role, data in folder.data.items() if data.manifest.source.get("kind") == "synthetic"],
    }
    context["total_seconds"] = sum(stage["seconds"] for stage in context["stages"])
    context["notes"] = folder.notes  # last: every section may have added notes
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f}",
        "points": _points,
        "number": lambda count: f"{count:,}",
        "duration": duration,
    }
    return environment.get_template(TEMPLATE).render(context)


def kind_of(folder: RunFolder) -> str:
    """The kind of the run folder as a subtitle, e.g. "Self-supervised pre-training"."""
    if folder.trials:
        return f"Sweep over fine-tuning, {len(folder.sweep_rows)} trials"
    if not folder.is_pipeline:
        if len(folder.members) > 1:
            return f"{len(folder.members)} runs"
        one = folder.members[0]
        names = {
            "pretrain": "Self-supervised pre-training",
            "score": "Catastrophic Forgetting Scores",
            "select": "Selection",
            "cluster": "Pseudo-identities",
        }
        return names.get(one.program, f"Fine-tuning: {setting_title(one.setting)}" if one.setting else one.program)
    if not folder.has_target:
        return "Pre-training and pseudo-identities"
    return "Pre-training, image selection, fine-tuning and evaluation"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def facts(folder: RunFolder, results: list[ResultRow]) -> list[tuple[str, str, str]]:
    """(value, label, detail) of the key figures at the top of the page."""
    found = []
    for setting in dict.fromkeys(row.setting for row in results):
        own = [row for row in results if row.setting == setting]
        best = max(own, key=lambda row: row.values["mAP"])
        gain = f", {_points(best.gain)} against random" if best.gain is not None else ""
        seeds = f"; mean of {best.seeds} seeds ± {100 * best.spread:.1f}" if best.spread is not None else "; one seed"
        label = f"{setting_title(setting)}: {'highest ' if len(own) > 1 else ''}mAP"
        found.append((f"{100 * best.values['mAP']:.1f} %", label, f"from {best.init}{gain}{seeds}"))
    score = next(iter(folder.of("score")), None)
    if score and score.summary and "auc_planted" in score.summary:
        found.append((f"{score.summary['auc_planted']:.3f}", "AUC of the scores", "people against planted useless images"))
    for one in folder.of("cluster"):
        if one.summary:
            found.append(
                (
                    f"{one.summary['clusters']:,}",
                    "pseudo-identities",
                    f"{one.summary['outliers']:,} of {one.summary['images']:,} images belong to none",
                )
            )
    for one in folder.of("pretrain"):
        if one.summary and one.summary["images_per_second"] is not None and not one.name.startswith("proxy/"):
            found.append(
                (
                    f"{one.summary['images_per_second']:,.0f} / s",
                    f"images pre-trained, {one.short_name}",
                    f"{one.summary['samples_seen']:,} seen, final loss {one.summary['final_loss']:.3f}",
                )
            )
    return found


def cfs_section(folder: RunFolder) -> dict[str, Any] | None:
    """Histogram, numbers and sample images of the scores; None without finished scores."""
    finished = [one for one in folder.of("score") if one.summary]
    if not finished:
        return None
    run = finished[0]
    folder.notes += [f"Scores that are not shown: {one.name} ({selections.measure_name(one)})." for one in finished[1:]]
    select = selections.selection_by(folder, run)
    section: dict[str, Any] = {
        "summary": run.summary,
        "selection": select,
        "histogram": None,
        "samples": None,
        "agreement": charts.agreement_curve(select),
        "measure": selections.measure_name(run),
        "kept": selections.kept_images(run),
        "selections": selections.selection_rows(folder),
        "label_free": selections.target_proxy_text(folder, run),
        "proxies": selections.proxy_rows(run),
    }
    data = folder.data.get("pretrain")
    if data is None:
        folder.notes.append("The scores' distribution is not shown: the images that were scored are not at hand.")
        return section
    try:
        table = read_scores(run.location, data.manifest)
        planted = None
        if "planted" in data.manifest.extra_columns:
            column = read_rows(data.location, ["planted"])["planted"].to_numpy().astype(bool)
            planted = column if column.any() and not column.all() else None
        scored = table["score"].is_valid().to_numpy()  # images that cannot be decoded have no score
        keys = table["key"].filter(scored).to_pylist()
        scores = table["score"].filter(scored).to_numpy().astype(np.float64)
        planted = None if planted is None else planted[scored]
        section["histogram"] = charts.score_histogram(scores, planted, select, section["measure"])
        section["samples"] = pictures.samples(data, keys, scores, planted)
    except StorageError as error:
        folder.notes.append(f"The scores cannot be read: {error}")
    return section


def cluster_section(folder: RunFolder) -> dict[str, Any] | None:
    """Numbers and images of the largest pseudo-identities; None without finished clusters."""
    run = next((one for one in folder.of("cluster") if one.summary), None)
    if run is None:
        return None
    section: dict[str, Any] = {"summary": run.summary, "clusters": []}
    if "pretrain" in folder.data:
        try:
            section["clusters"] = pictures.clusters(folder.data["pretrain"], *read_labels(run.location))
        except StorageError as error:
            folder.notes.append(f"The images of the pseudo-identities cannot be read: {error}")
    return section
