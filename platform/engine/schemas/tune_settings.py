"""The settings of platform.tune."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from platform.engine.config.paths import OutputPath, SettingsOf
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, one_of
from reidssl.choices import RETRIEVAL_METRICS as METRICS

DRAWS = ("choice", "uniform", "log_uniform", "integer")
SEARCHES = ("grid", "optuna")
SCHEDULERS = ("none", "asha", "median", "pbt")


@dataclass(kw_only=True)
class SchedulerConfig:
    """When a trial is stopped before its end. It is compared after each evaluation, so finetune.evaluate_every must be set."""

    name: str = "none"
    """none: every trial runs to its end; asha: asynchronous successive halving (arXiv 1810.05934); median: stop a trial whose
    best evaluation is below the median of the others' running means (Google Vizier); pbt: population based training (arXiv
    1711.09846), the worst quarter of the trials is replaced by copies of the best quarter with other settings."""
    grace: int = 1
    """Evaluations before a trial may be stopped; pbt: evaluations between two comparisons."""
    reduction: int = 3
    """asha only: one trial in so many goes on from each rung, and the rungs lie at grace * reduction ** n evaluations."""
    min_trials: int = 3
    """median only: number of other trials needed for a median."""

    def __post_init__(self) -> None:
        one_of(SCHEDULERS, name=self.name)
        at_least(1, grace=self.grace, min_trials=self.min_trials)
        at_least(2, reduction=self.reduction)


@dataclass(kw_only=True)
class TuneConfig:
    """The fine-tuning settings of a sweep and the values to try."""

    output: OutputPath = "runs/tune"
    """Folder of the sweep. Every trial has a folder of its own below it."""
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(output="", setting="usl"))
    """Settings common to all trials."""
    space: Annotated[dict[str, Any], SettingsOf(FinetuneConfig, words=DRAWS)] = field(default_factory=dict)
    """Settings of platform.finetune, each with a list of values or with a distribution: {uniform:[low,high]},
    {log_uniform:[low,high]}, {integer:[low,high]} or {choice:[a,b]}. A config group, e.g. model, has a list of choices. Empty:
    sweep eps of the clustering."""
    search: str = "grid"
    """grid: every combination of the lists, with each of `samples` random draws of the distributions. optuna: `samples` trials
    whose values Optuna chooses from the results of earlier ones (TPE, arXiv 2304.11127); lists are choices."""
    samples: int = 10
    """Draws of the distributions. Lists without distributions do not need it, unless search=optuna."""
    seed: int = 0
    """Seed of the draws. The seed of the trials is finetune.seed; space.seed=[0,1,2] gives means over seeds."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    metric: str = "mAP"
    """Metric that ranks the trials: mAP, rank1, rank5, rank10 or mINP."""
    concurrent: int = 1
    """Trials that run at the same time. The workers of all of them must fit the cluster at once."""
    verbose: bool = False
    """Also print the lines of the trials, e.g. each epoch."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        one_of(METRICS, metric=self.metric)
        one_of(SEARCHES, search=self.search)
        at_least(1, concurrent=self.concurrent, samples=self.samples)
        at_least(0, seed=self.seed)
        if self.scheduler.name != "none" and not self.finetune.evaluate_every:
            raise ValueError(
                f"scheduler.name={self.scheduler.name} compares trials after their evaluations, and finetune.evaluate_every=0 "
                "has only one, at the end: give finetune.evaluate_every=1 or more"
            )
        if self.scheduler.name == "pbt" and self.search != "grid":
            raise ValueError(f"scheduler.name=pbt changes the settings itself: search must be grid, got {self.search}")
        for name in ("storage", "runtime"):
            given, own = getattr(self.finetune, name), getattr(self, name)
            if given not in (type(given)(), own):
                raise ValueError(f"finetune.{name} is that of the sweep: give {name} instead")
