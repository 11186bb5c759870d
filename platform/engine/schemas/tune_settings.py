"""The settings of platform.tune."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from platform.engine.config.paths import OutputPath, SettingsOf
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, one_of

METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")


@dataclass(kw_only=True)
class TuneConfig:
    """The fine-tuning settings of a sweep and the values to try."""

    output: OutputPath = "runs/tune"
    """Folder of the sweep. Every trial has a folder of its own below it."""
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(output="", setting="usl"))
    """Settings common to all trials."""
    space: Annotated[dict[str, Any], SettingsOf(FinetuneConfig)] = field(default_factory=dict)
    """Settings of platform.finetune, each with a list of values; every combination is a trial. Empty: sweep eps of the
    clustering."""
    metric: str = "mAP"
    """Metric that ranks the trials: mAP, rank1, rank5, rank10 or mINP."""
    concurrent: int = 1
    """Trials that run at the same time. The workers of all of them must fit the cluster at once."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        one_of(METRICS, metric=self.metric)
        at_least(1, concurrent=self.concurrent)
        for name in ("storage", "runtime"):
            given, own = getattr(self.finetune, name), getattr(self, name)
            if given not in (type(given)(), own):
                raise ValueError(f"finetune.{name} is that of the sweep: give {name} instead")
