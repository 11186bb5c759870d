"""The settings of every program, as dataclasses that import quickly: no torch, no Ray, no compiler.

They are kept apart from the code that uses them, so that `--help`, `--show-config` and the error for a misspelled key appear
at once. A field that holds a path is annotated as a path: see platform/engine/config/paths.py.
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
"""Program name -> name of its dataclass in <program>_settings.py of this folder."""


def schema_of(program: str) -> type[Any]:
    """The dataclass that `platform.<program>.main` takes as its argument."""
    return getattr(importlib.import_module(f"platform.engine.schemas.{program}_settings"), SCHEMAS[program])
