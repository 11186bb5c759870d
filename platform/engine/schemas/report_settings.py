"""The settings of platform.report."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least


@dataclass(kw_only=True)
class ReportConfig:
    """The run to report on and the file to write."""

    run: InputPath = "runs/demo"
    """Run folder of platform.pipeline, or of a single program; local or s3://."""
    output: OutputPath = ""
    """A .html file, or a folder for report.html; empty: report.html in the run folder."""
    every_s: float = 0.0
    """While the run is running, make the page anew after so many seconds; 0: make it once. The page of a running run reloads
    itself."""
    quiet_s: float = 1800.0
    """With every_s: stop when no file of the run has changed for so many seconds, as after a kill; 0: wait for the summary. A run
    with its folder in object storage may write nothing between two checkpoints."""
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        at_least(0, "(once)", every_s=self.every_s)
        at_least(0, "(never)", quiet_s=self.quiet_s)
