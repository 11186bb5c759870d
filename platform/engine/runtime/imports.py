"""Faster imports of heavy libraries: without their optional packages, and without garbage collection meanwhile."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Imported by DeepSpeed's autotuner (mlflow) and by timm (wandb, and a module that loads torch._dynamo). The trackers of a run
# import these packages later, when they are visible again.
UNUSED = ("mlflow", "wandb", "torchvision.models.feature_extraction")


def import_models() -> None:
    """Import timm, twice as fast as the plain import. Only for processes of this platform, such as Ray workers."""
    with without_collection(), _without(*UNUSED):
        import timm.models.vision_transformer  # noqa: F401


def import_engine() -> None:
    """Import timm and DeepSpeed. Only for processes of this platform, such as Ray workers."""
    import_models()
    with without_collection(), _without(*UNUSED):
        import deepspeed  # noqa: F401


@contextmanager
def without_collection() -> Iterator[None]:
    """Context manager: no garbage collection, which slows large imports down and finds nothing there."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Context manager: those of the modules `names` that are not imported yet appear as not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
