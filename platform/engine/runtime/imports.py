"""Faster starts of workers: heavy libraries without the parts that they import only because they find them installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# By DeepSpeed's autotuner; by timm: wandb, and what brings torch._dynamo. Trackers import theirs later, after this.
UNUSED = ("mlflow", "wandb", "torchvision.models.feature_extraction")


def import_models() -> None:
    """timm, in a process that is ours alone; takes half as long as the plain import."""
    with _without(*UNUSED):
        import timm.models.vision_transformer  # noqa: F401


def import_engine() -> None:
    """timm and DeepSpeed, in a process that is ours alone."""
    import_models()
    with _without(*UNUSED):
        import deepspeed  # noqa: F401


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """As if modules that are not imported yet were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
