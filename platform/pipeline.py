"""All stages in order, from images to a re-ID model with numbers and a report; each is skipped when it is complete.

  python -m platform.pipeline                                    (synthetic people, local folder: what `make demo` runs)
  python -m platform.pipeline source.kind=video source.path=street.avi source.detections=street.txt output=runs/street
  python -m platform.pipeline source.kind=luperson source.path=s3://bucket/LUPerson output=s3://bucket/run storage=s3 \\
      target.kind=market1501 target.path=s3://bucket/Market-1501

Stages: ingest the pre-training, source and target sets; pre-train on everything; fine-tune that (or a shorter source
proxy) to the target; score every image with the two (CFS) and select the best part; pre-train on it for the same number
of images seen; fine-tune to the target supervised, UDA and USL from random weights, from the full and from the selected
pre-training; report. cfs.control=true adds a pre-training on a random part of the same size, seen as often: what the
selected part must beat.
Results: report.html and results.json in the output folder; while it runs, results.json says of each stage whether it is
running, complete or failed. The same command again continues where it was interrupted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from platform.engine.config import run_program
from platform.engine.evaluation import EvaluateConfig
from platform.engine.inference import PoolConfig
from platform.engine.phases import UnsupervisedConfig
from platform.engine.records import read_record
from platform.engine.runs import VOLATILE, environment, open_run
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.scaling import ScalingConfig
from platform.engine.shards import read_manifest
from platform.engine.sources import SourceConfig
from platform.engine.storage import Location, StorageConfig, StorageError
from platform.engine.supervised import SupervisedConfig
from platform.engine.tracking import TrackingConfig
from platform.finetune import FinetuneConfig
from platform.finetune import main as run_finetune
from platform.ingest import IngestConfig
from platform.ingest import main as run_ingest
from platform.pretrain import DataConfig, LengthConfig, PretrainConfig
from platform.pretrain import main as run_pretrain
from platform.report import ReportConfig
from platform.report import main as run_report
from platform.score import ScoreConfig
from platform.score import main as run_score
from platform.select import SelectConfig
from platform.select import main as run_select
from reidssl.augment.reid import ReidAugmentConfig

SETTINGS, INITS = ("supervised", "uda", "usl"), ("random", "full", "selected", "control")
PARTS = ("pretrain", "source", "target")


@dataclass(kw_only=True)
class FinetuneStageConfig:
    """Shared by all fine-tuning stages."""

    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    augment: ReidAugmentConfig = field(default_factory=ReidAugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    """Seed of batches, augmentation and new layers."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")


@dataclass(kw_only=True)
class CfsConfig:
    """How the selected subset comes about."""

    proxy_samples: int = 0
    """Images that a source proxy of its own sees (the paper's: 20 of 100 epochs); 0: the full pre-training is the proxy."""
    fraction: float = 0.5
    """Share of the images to keep."""
    control: bool = False
    """Also pre-train on a random part of the same size."""
    target_proxy: str = "supervised"
    """supervised (as published: uses the target's labels) or usl (label-free)."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    """How the supervised target proxy is tuned."""

    def __post_init__(self) -> None:
        if self.proxy_samples < 0:
            raise ValueError(f"proxy_samples must be 0 (no proxy of its own) or more: got {self.proxy_samples}")
        if self.target_proxy not in ("supervised", "usl"):
            raise ValueError(f"target_proxy must be supervised or usl: got '{self.target_proxy}'")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1]: got {self.fraction}")


@dataclass(kw_only=True)
class PipelineConfig:
    """The whole job. pretrain.data, pretrain.output and the like are set by the pipeline."""

    output: str = "runs/demo"
    """Folder of everything."""
    source: SourceConfig = field(default_factory=lambda: SourceConfig(kind="synthetic", part="pretrain"))
    """The unlabelled pre-training images."""
    labelled: SourceConfig = field(default_factory=lambda: SourceConfig(kind="synthetic", part="source"))
    """The labelled source set (UDA)."""
    target: SourceConfig = field(default_factory=lambda: SourceConfig(kind="synthetic", part="target"))
    """The target set with train, query and gallery."""
    row_group_rows: int = 256
    """Images in a row group of the shards."""
    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    """Fine-tuning settings to run."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneStageConfig = field(default_factory=FinetuneStageConfig)
    cfs: CfsConfig = field(default_factory=CfsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.row_group_rows < 1:
            raise ValueError(f"row_group_rows must be at least 1: got {self.row_group_rows}")
        unknown = set(self.settings) - set(SETTINGS)
        if unknown or not self.settings:
            raise ValueError(f"settings must be some of {', '.join(SETTINGS)}: got {list(self.settings)}")


def main(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage that is not complete; keep results.json up to date."""
    run = open_run("pipeline", config.output, config, config.storage, volatile=(*VOLATILE, "pool"))
    root = run.location
    story = stages(config, root)
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


def stages(config: PipelineConfig, root: Location) -> list[tuple[str, Callable[[], Any]]]:
    """Name and function of every stage, in order. Each ends in a program's main, which skips itself when complete."""
    story: list[tuple[str, Callable[[], Any]]] = [(f"ingest-{part}", partial(ingest, config, root, part)) for part in PARTS]
    proxy = source_proxy(config)
    story.append(("pretrain-full", partial(pretrain, config, root, "pretrain/full")))
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
    for setting in config.settings:
        for init in INITS if config.cfs.control else INITS[:-1]:
            from_run = "" if init == "random" else f"pretrain/{init}"
            stage = partial(fine_tune, config, root, setting, from_run, f"finetune/{setting}-{init}")
            story.append((f"finetune-{setting}-{init}", stage))
    story.append(("report", partial(run_report, ReportConfig(run=root.uri, storage=config.storage))))
    return story


def source_proxy(config: PipelineConfig) -> str:
    """The run that serves as source proxy."""
    return "proxy/source" if config.cfs.proxy_samples else "pretrain/full"


def ingest(config: PipelineConfig, root: Location, part: str) -> None:
    """One of the three data sets."""
    source = {"pretrain": config.source, "source": config.labelled, "target": config.target}[part]
    run_ingest(IngestConfig(source=source, output=(root / "data" / part).uri, row_group_rows=config.row_group_rows,
                            storage=config.storage, runtime=config.runtime))


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
        probe=replace(config.pretrain.probe, uri=(root / "data" / "target").uri)))


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
        full = self._summary("pretrain/full")
        if full:
            found["pretrain"] = {name: full[name] for name in ("images_per_second", "steps", "final_loss")}
        for setting in SETTINGS:
            for init in INITS:
                summary = self._summary(f"finetune/{setting}-{init}")
                if summary:
                    names = ("mAP", "rank1", "rank5", "rank10", "mINP", "clusters")
                    found["finetune"].append({"setting": setting, "init": init} | {n: summary[n] for n in names})
        return found

    def _summary(self, name: str) -> dict[str, Any] | None:
        file = self.root.joinpath(name, "summary.json")
        return file.read_json() if file.exists() else None


def table(results: dict[str, Any]) -> str:
    """The final table."""
    cfs = results["cfs"]
    auc = "" if cfs.get("auc_planted") is None else f", AUC against planted images {cfs['auc_planted']:.3f}"
    lines = ["", f"CFS kept {cfs['selected']:,} of {cfs['total']:,} images{auc}", "",
             f"{'setting':<12}{'init':<10}{'mAP':>7}{'Rank-1':>8}{'Rank-5':>8}{'Rank-10':>9}{'mINP':>7}{'clusters':>10}"]
    for row in results["finetune"]:
        lines.append(f"{row['setting']:<12}{row['init']:<10}{100 * row['mAP']:>7.1f}{100 * row['rank1']:>8.1f}"
                     f"{100 * row['rank5']:>8.1f}{100 * row['rank10']:>9.1f}{100 * row['mINP']:>7.1f}"
                     f"{row['clusters'] or '-':>10}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program("pipeline")
