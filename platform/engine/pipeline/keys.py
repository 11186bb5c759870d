"""The keys of the pipeline in the messages of the programs that it runs."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from platform.engine.errors import ConfigError, UserError
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.schemas.pretrain_settings import PretrainConfig

OWN = ("data", "storage", "runtime")  # sections that the pipeline sets itself or has under the same name
PRETRAIN = {item.name: f"pretrain.{item.name}" for item in fields(PretrainConfig) if item.name not in OWN}
FINETUNE = {name: f"finetune.{name}" for name in ("supervised", "unsupervised", "augment", "evaluate", "scaling")} | {
    "model": "pretrain.model"
}
TARGET_PROXY = FINETUNE | {"supervised": "cfs.supervised"}
WORKERS = "allowed numbers of workers"
PRETRAIN_PHRASES = {
    WORKERS: "allowed values of pretrain.scaling.workers",
    "change the micro-batches of a step": "change pretrain.stream.micro_batches_per_step",
}
DOTTED = re.compile(r"(?<![\w/.-])[a-z]\w*(?:\.\w+)+(?![\w/-])")
"""Matches what may be a key of at least two parts, but not the parts of a path."""


def renamed(text: str, schema: type, names: Mapping[str, str], phrases: Mapping[str, str] | None = None) -> str:
    """A message of a program with the keys of the pipeline.

    Args:
        schema: dataclass of the program. Its keys of at least two parts are replaced, such as supervised.batch.identities.
        names: first part of a key -> what replaces it.
        phrases: further texts -> what replaces them, such as the setting=usl of an advice.
    """

    def key_of(found: re.Match[str]) -> str:
        first, _, rest = found[0].partition(".")
        return f"{names[first]}.{rest}" if first in names and _has_key(schema, found[0]) else found[0]

    text = DOTTED.sub(key_of, text)
    for old, new in (phrases or {}).items():
        text = re.sub(rf"(?<![\w.]){re.escape(old)}\b", new, text)
    return text


@contextmanager
def keys_of(schema: type, names: Mapping[str, str], phrases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Context manager: a UserError gets the keys of the pipeline. Arguments as in `renamed`."""
    try:
        yield
    except UserError as error:
        error.args = (renamed(str(error), schema, names, phrases),)
        raise


@contextmanager
def settings_of(stage: str, schema: type, names: Mapping[str, str], phrases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Context manager around the checks of the settings of a stage. Arguments as in `renamed`.

    Raises ConfigError for the ValueError of a dataclass that refuses its values; a UserError begins with the name of the stage.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"configuration: {renamed(str(error), schema, names, phrases)}") from None
    except UserError as error:
        error.args = (f"{stage}: {renamed(str(error), schema, names, phrases)}",)
        raise


def finetune_keys(proxy: bool) -> tuple[type, dict[str, str], dict[str, str]]:
    """The arguments of `keys_of` for a fine-tuning. proxy: the one of the target proxy."""
    without_labels = "cfs.target_proxy=usl" if proxy else "settings=[usl]"
    phrases = {"setting=usl": without_labels, WORKERS: "allowed values of finetune.scaling.workers"}
    return FinetuneConfig, TARGET_PROXY if proxy else FINETUNE, phrases


def _has_key(schema: Any, key: str) -> bool:
    """Whether a dataclass has a setting or a section of this name."""
    for name in key.split("."):
        hints = get_type_hints(schema) if is_dataclass(schema) else {}
        if name not in hints:
            return False
        schema = hints[name]
    return True
