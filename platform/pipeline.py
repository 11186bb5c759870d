"""All stages in order, from images to a re-ID model with numbers and a report; each is skipped when it is complete.

  python -m platform.pipeline experiment=demo                    (synthetic people, tiny sizes: what `make demo` runs)
  python -m platform.pipeline pretrain_set.kind=luperson pretrain_set.path=s3://bucket/LUPerson storage=s3 \\
      target_set.kind=market1501 target_set.path=s3://bucket/Market-1501 settings=[supervised,usl] output=s3://bucket/run
  python -m platform.pipeline experiment=small settings=[] pretrain_set.kind=video pretrain_set.path=street.avi \\
      pretrain_set.detections=street.txt output=runs/street      (a video and nothing else, sizes for a laptop)

Stages: ingest the pre-training, source and target sets; pre-train on everything; fine-tune that (or a shorter source
proxy) to the target; score every image with the two (CFS) and select the best part; pre-train on it for the same number
of images seen; fine-tune to the target supervised, UDA and USL from random weights, from the full and from the selected
pre-training; report. cfs.control=true adds a pre-training on a random part of the same size, seen as often: what the
selected part must beat. settings=[] leaves the fine-tuning out; without a target set, too, the stages are: ingest,
pre-train, cluster the images (pseudo-identities), report.
Sizes are the published recipe's. model@pretrain.model=vit_base_ics, objective@pretrain.objective=moco_v3,
scaling@pretrain.scaling=gpus8 choose others.
Results: report.html and results.json in the output folder; while it runs, results.json says of each stage whether it is
running, complete or failed. The same command again continues where it was interrupted.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelt key are answered at once
    run_program("pipeline")

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any

from platform.cluster import ClusterProgramConfig
from platform.cluster import main as run_cluster
from platform.engine.data.shards import MANIFEST, read_manifest
from platform.engine.errors import StorageError, UserError
from platform.engine.finetune.supervised import SupervisedConfig
from platform.engine.inference.evaluation import require_splits
from platform.engine.ingest.sources import SourceConfig, open_source
from platform.engine.runs.json_records import read_record
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.runs.run_folder import VOLATILE, environment, open_run
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.pipeline_settings import PipelineConfig
from platform.engine.schemas.pretrain_settings import DataConfig, LengthConfig
from platform.engine.storage.location import Location, open_storage
from platform.finetune import FinetuneConfig
from platform.finetune import main as run_finetune
from platform.ingest import IngestConfig
from platform.ingest import main as run_ingest
from platform.pretrain import main as run_pretrain
from platform.report import ReportConfig
from platform.report import main as run_report
from platform.score import ScoreConfig
from platform.score import main as run_score
from platform.select import SelectConfig
from platform.select import main as run_select

SETTINGS, INITS = ("supervised", "uda", "usl"), ("random", "full", "selected", "control")
PARTS = ("pretrain", "source", "target")
SPLITS = {"pretrain": ["train"], "source": ["train"], "target": ["train", "query", "gallery"]}


def main(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage that is not complete; keep results.json up to date."""
    check_sets(config)  # first: a forgotten set must not become the configuration of the output folder
    run = open_run("pipeline", config.output, config, config.storage, volatile=(*VOLATILE, "pool"))
    root = run.location
    story = stages(config, root)
    if not is_given(config, "target"):
        say("pipeline: settings=[] and no target_set: ingest, pre-training, clusters and report only")
    if is_given(config, "source") and "uda" not in config.settings:
        say("pipeline: source_set is not read: settings has no uda")
    results = Results(root)
    connect(config.runtime)
    for number, (name, stage) in enumerate(story, 1):
        say(f"--- stage {number}/{len(story)}: {name}")
        with results.stage(name):
            stage()
    final = results.collect()
    run.finish({"results": final})
    say(f"--- report: {(root / 'report.html').uri}")
    print(table(final))
    return final


def is_given(config: PipelineConfig, part: str) -> bool:
    """Whether the user named anything of that set."""
    name = f"{part}_set"
    return getattr(config, name) != getattr(PipelineConfig(), name)


def check_sets(config: PipelineConfig) -> None:
    """Raises UserError for a set that is needed and not given, or not there; one line with the keys to give."""
    if not is_given(config, "pretrain"):
        raise UserError("pretrain_set is not given: name the images to pre-train on, e.g. pretrain_set.kind=folder "
                        "pretrain_set.path=photos (experiment=demo draws synthetic people)")
    if config.settings and not is_given(config, "target"):
        raise UserError(f"target_set is not given, and settings=[{','.join(config.settings)}] fine-tune to it: name a set with "
                        "identities, e.g. target_set.kind=market1501 target_set.path=Market-1501, or give settings=[] to stop "
                        "after pre-training and clustering")
    if "uda" in config.settings and not is_given(config, "source"):
        others = ",".join(one for one in config.settings if one != "uda")
        raise UserError("source_set is not given, and the setting uda starts from it: name a labelled set, e.g. "
                        f"source_set.kind=msmt17 source_set.path=MSMT17_V1, or leave uda out: settings=[{others}]")
    for part in parts_of(config):
        manifest = open_storage(config.output, config.storage).joinpath("data", part, MANIFEST) if config.output else None
        if manifest is None or not manifest.exists():  # a set that is complete is not read again
            check_set(config, part)


def check_set(config: PipelineConfig, part: str) -> None:
    """Raises UserError if what a set is to be read from is not named or not there."""
    chosen: SourceConfig = getattr(config, f"{part}_set")
    with of_set(part):
        open_source(chosen, config.storage)
    for key in ("path", "detections"):
        uri = getattr(chosen, key)
        if uri and chosen.kind != "synthetic" and not open_storage(uri, config.storage).exists():
            raise UserError(f"{part}_set.{key}={uri} does not exist")


@contextmanager
def of_set(part: str) -> Iterator[None]:
    """What the readers say about `source`, platform.ingest's key, is said about the pipeline's key of that set."""
    try:
        yield
    except UserError as error:
        keys = "|".join(item.name for item in fields(SourceConfig))
        text = re.sub(rf"(?<![\w/.-])source\.(?=({keys})\b)", f"{part}_set.", str(error))  # a key, not a part of a path
        error.args = (text if f"{part}_set." in text else f"{part}_set: {text}",)
        raise


def parts_of(config: PipelineConfig) -> list[str]:
    """The sets that this run reads."""
    wanted = {"pretrain": True, "source": "uda" in config.settings, "target": is_given(config, "target")}
    return [part for part in PARTS if wanted[part]]


Story = list[tuple[str, Callable[[], Any]]]


def stages(config: PipelineConfig, root: Location) -> Story:
    """Name and function of every stage, in order. Each ends in a program's main, which skips itself when complete."""
    story: Story = [(f"ingest-{part}", partial(ingest, config, root, part)) for part in parts_of(config)]
    story.append(("pretrain-full", partial(pretrain, config, root, "pretrain/full")))
    if is_given(config, "target"):
        story += selection_stages(config, root) + finetune_stages(config, root)
    else:
        story.append(("cluster", partial(cluster, config, root)))
    story.append(("report", partial(run_report, ReportConfig(run=root.uri, storage=config.storage))))
    return story


def selection_stages(config: PipelineConfig, root: Location) -> Story:
    """From the full pre-training to that on the selected part."""
    proxy = source_proxy(config)
    story: Story = []
    if proxy != "pretrain/full":
        story.append(("source-proxy", partial(pretrain, config, root, proxy)))
    story += [
        ("target-proxy", partial(fine_tune, config, root, config.cfs.target_proxy, proxy, "proxy/target",
                                 supervised=config.cfs.supervised)),
        ("score", partial(score, config, root)),
        ("select", partial(select, config, root)),
        ("pretrain-selected", partial(pretrain, config, root, "pretrain/selected", selection="selection")),
    ]
    if config.cfs.control:
        story += [("select-control", partial(select_control, config, root)),
                  ("pretrain-control", partial(pretrain, config, root, "pretrain/control", selection="selection-control"))]
    return story


def finetune_stages(config: PipelineConfig, root: Location) -> Story:
    """Every setting from every start."""
    story: Story = []
    for setting in config.settings:
        for init in INITS if config.cfs.control else INITS[:-1]:
            from_run = "" if init == "random" else f"pretrain/{init}"
            stage = partial(fine_tune, config, root, setting, from_run, f"finetune/{setting}-{init}")
            story.append((f"finetune-{setting}-{init}", stage))
    return story


def source_proxy(config: PipelineConfig) -> str:
    """The run that serves as source proxy."""
    return "proxy/source" if config.cfs.proxy_samples else "pretrain/full"


def ingest(config: PipelineConfig, root: Location, part: str) -> None:
    """One of the three data sets."""
    with of_set(part):
        run_ingest(IngestConfig(source=getattr(config, f"{part}_set"), output=(root / "data" / part).uri,
                                row_group_rows=config.row_group_rows, storage=config.storage, runtime=config.runtime))
        require_splits(root / "data" / part, SPLITS[part])  # now, not after days of pre-training


def pretrain(config: PipelineConfig, root: Location, name: str, selection: str = "") -> None:
    """One of the pre-trainings; full, selected and control see the same number of images."""
    data = root / "data" / "pretrain"
    length = config.pretrain.length
    total = length.samples or round(length.epochs * read_manifest(data).num_rows)
    samples = config.cfs.proxy_samples if name == "proxy/source" else total
    run_pretrain(replace(
        config.pretrain, output=(root / name).uri, storage=config.storage, runtime=config.runtime,
        data=DataConfig(uri=data.uri, selection=(root / selection).uri if selection else ""),
        length=LengthConfig(epochs=length.epochs, samples=samples),
        probe=replace(config.pretrain.probe, uri=(root / "data" / "target").uri if is_given(config, "target") else "")))


def cluster(config: PipelineConfig, root: Location) -> None:
    """Pseudo-identities of the pre-training images, as unsupervised fine-tuning would make them."""
    how = config.finetune.unsupervised
    run_cluster(ClusterProgramConfig(
        checkpoint=(root / "pretrain" / "full").uri, data=(root / "data" / "pretrain").uri, output=(root / "clusters").uri,
        cluster=how.cluster, neighbours=how.neighbours, pool=config.pool, storage=config.storage, runtime=config.runtime))


def score(config: PipelineConfig, root: Location) -> None:
    """CFS of every pre-training image."""
    run_score(ScoreConfig(
        data=(root / "data" / "pretrain").uri, source=(root / source_proxy(config)).uri, target=(root / "proxy" / "target").uri,
        output=(root / "scores").uri, pool=config.pool, storage=config.storage, runtime=config.runtime))


def select(config: PipelineConfig, root: Location) -> None:
    """The best part of them."""
    run_select(SelectConfig(data=(root / "data" / "pretrain").uri, scores=(root / "scores").uri,
                            output=(root / "selection").uri, fraction=config.cfs.fraction, storage=config.storage))


def select_control(config: PipelineConfig, root: Location) -> None:
    """As many of them by chance."""
    run_select(SelectConfig(data=(root / "data" / "pretrain").uri, random=True, seed=config.pretrain.stream.seed,
                            output=(root / "selection-control").uri, fraction=config.cfs.fraction, storage=config.storage))


def fine_tune(config: PipelineConfig, root: Location, setting: str, init: str, name: str,
              supervised: SupervisedConfig | None = None) -> None:
    """One fine-tuning run and its evaluation; `supervised` in place of the common settings."""
    stage = config.finetune
    run_finetune(FinetuneConfig(
        output=(root / name).uri, setting=setting, init=(root / init).uri if init else "", seed=stage.seed,
        source=(root / "data" / "source").uri if setting == "uda" else "", target=(root / "data" / "target").uri,
        model=replace(config.pretrain.model), supervised=supervised or stage.supervised, unsupervised=stage.unsupervised,
        augment=stage.augment, evaluate=stage.evaluate, scaling=stage.scaling, tracking=TrackingConfig(),
        max_corrupt_share=config.pool.max_corrupt_share,
        storage=config.storage, runtime=config.runtime))


class Results:
    """results.json: kept up to date around every stage, so that an interrupted run shows what it has and where it was."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.file = root / "results.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            advice = "platform.pipeline makes it anew when it is not there; move the file away"
            self.stages = read_record(self.file, "stages", dict, advice)["stages"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Notes the stage inside as running, then as complete or failed; one that was complete keeps the time it really took."""
        before, started = self.stages.get(name, {}), time.perf_counter()
        self._note(name, "running", 0.0)
        try:
            yield
        except BaseException:  # an order to stop as well
            with suppress(StorageError):  # if storage is what fails, the first error is the one to read
                self._note(name, "failed", time.perf_counter() - started)
            raise
        keep = before.get("status") == "complete" and name != "report"
        self._note(name, "complete", before["seconds"] if keep else time.perf_counter() - started)

    def _note(self, name: str, status: str, seconds: float) -> None:
        self.stages[name] = {"status": status, "seconds": round(seconds, 1)}
        self.file.write_json(self.collect())

    def collect(self) -> dict[str, Any]:
        """Everything known so far, read from the summaries of the finished runs."""
        found: dict[str, Any] = {"stages": self.stages, "cfs": {}, "pretrain": {}, "finetune": [],
                                 "environment": environment()}
        scores, selection = self._summary("scores"), self._summary("selection")
        if scores and selection:
            found["cfs"] = {"total": scores["total"], "selected": selection["selected"],
                            "auc_planted": scores.get("auc_planted"), "measure": scores.get("measure"),
                            "proxies": scores.get("proxies")}
        clusters = self._summary("clusters")
        if clusters:
            found["clusters"] = {name: clusters[name] for name in ("images", "clusters", "outliers")}
        full = self._summary("pretrain/full")
        if full:
            found["pretrain"] = {name: full[name] for name in ("images_per_second", "steps", "final_loss")}
        for setting in SETTINGS:
            for init in INITS:
                summary = self._summary(f"finetune/{setting}-{init}")
                if summary:
                    names = ("mAP", "rank1", "rank5", "rank10", "mINP", "clusters")
                    found["finetune"].append({"setting": setting, "init": init} | {n: summary[n] for n in names} | {
                        n: summary[n] for n in ("evaluation", "warnings") if n in summary})  # not in those of older versions
        return found

    def _summary(self, name: str) -> dict[str, Any] | None:
        file = self.root.joinpath(name, "summary.json")
        return file.read_json() if file.exists() else None


def table(results: dict[str, Any]) -> str:
    """The final table."""
    cfs, clusters, lines = results["cfs"], results.get("clusters"), [""]
    if clusters:
        lines.append(f"{clusters['clusters']:,} pseudo-identities and {clusters['outliers']:,} outliers among "
                     f"{clusters['images']:,} images (clusters/labels.parquet)")
    if cfs:
        auc = "" if cfs["auc_planted"] is None else f", AUC against planted images {cfs['auc_planted']:.3f}"
        lines.append(f"CFS kept {cfs['selected']:,} of {cfs['total']:,} images{auc}")
    if results["finetune"]:
        lines += ["", f"{'setting':<12}{'init':<10}{'mAP':>7}{'Rank-1':>8}{'Rank-5':>8}{'Rank-10':>9}{'mINP':>7}{'clusters':>10}"]
    for row in results["finetune"]:
        lines.append(f"{row['setting']:<12}{row['init']:<10}{100 * row['mAP']:>7.1f}{100 * row['rank1']:>8.1f}"
                     f"{100 * row['rank5']:>8.1f}{100 * row['rank10']:>9.1f}{100 * row['mINP']:>7.1f}"
                     f"{row['clusters'] or '-':>10}")
    return "\n".join(lines)
