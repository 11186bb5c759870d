"""The settings of every program and of what it stands on, importable in a moment: no torch, no Ray, no compiler.

So that `--help`, `--show-config` and a misspelled key are answered at once, these dataclasses lie apart from the code that they
are for. A field that names a file or folder is declared as such: see platform/engine/config/paths.py.
"""

import importlib
from typing import Any

SCHEMAS = {
    "cluster": "ClusterProgramConfig",
    "evaluate": "EvaluateProgramConfig",
    "export": "ExportConfig",
    "finetune": "FinetuneConfig",
    "ingest": "IngestConfig",
    "pipeline": "PipelineConfig",
    "pretrain": "PretrainConfig",
    "report": "ReportConfig",
    "score": "ScoreConfig",
    "select": "SelectConfig",
    "tune": "TuneConfig",
}
"""Program -> class in <program>_settings.py here."""


def schema_of(program: str) -> type[Any]:
    """The dataclass that `platform.<program>.main` takes."""
    return getattr(importlib.import_module(f"platform.engine.schemas.{program}_settings"), SCHEMAS[program])
