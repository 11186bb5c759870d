"""The settings of platform.report."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.storage.location import StorageConfig


@dataclass(kw_only=True)
class ReportConfig:
    """The run to report on and the file to write."""

    run: InputPath = "runs/demo"
    """Run folder of platform.pipeline, or of a single program; local or s3://."""
    output: OutputPath = ""
    """A .html file, or a folder for report.html; empty: report.html in the run folder."""
    storage: StorageConfig = field(default_factory=StorageConfig)
