"""The stages of a pipeline: what each needs, and their execution one after the other."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from platform.engine.pipeline.results import Results
from platform.engine.runtime.terminal import say


class Stage(NamedTuple):
    """A program with its settings."""

    name: str
    run: Callable[[], Any]
    """Calls the `main` of a program, which does nothing if its run is complete."""
    needs: tuple[str, ...] = ()
    """Names of the stages whose results it reads. They come before it in every list of stages."""
    pool: bool = False
    """Whether it computes in a pool of actors, which takes all CPUs that it finds."""


def nothing() -> None:
    """Default of `begin` below."""


def run_in_order(stages: Sequence[Stage], results: Results, begin: Callable[[], Any] = nothing) -> None:
    """Run the stages in this process, one after the other. Raises the error of the first one that fails.

    begin: called once, before the first stage that needs others.
    """
    begun = False
    for number, stage in enumerate(stages, 1):
        if stage.needs and not begun:
            begin()
            begun = True
        say(f"--- stage {number}/{len(stages)}: {stage.name}")
        with results.stage(stage.name):
            stage.run()
