"""Points that Optuna chooses from the results of earlier trials."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from platform.engine.sweep.draws import Draw
from platform.engine.sweep.space import Point
from platform.engine.sweep.trials import PointBook
from reidssl.seeding import mix

TRIES = 50  # suggestions of points that were tried already, before the search ends


class Suggestions(Searcher):
    """Searcher of Ray Tune around its OptunaSearch, whose points are stored in a PointBook before they run.

    The search can be continued: trials of the book that are done are told to Optuna, and the others run first. No point is tried
    twice; the search ends early if Optuna finds no new one.

    Args:
        metric: to be maximized.
        draws: key of a setting -> its distribution.
        done: point as JSON -> metric, of the trials that are done.
    """

    def __init__(self, metric: str, seed: int, draws: Mapping[str, Draw], book: PointBook, done: Mapping[str, float]) -> None:
        super().__init__(metric=metric, mode="max")
        self.draws, self.book, self.results = dict(draws), book, dict(done)
        self.waiting = [point for point in book.points if json.dumps(point) not in done]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._names: dict[str, str] = {}  # trial of Tune -> trial of Optuna
        self._optuna = OptunaSearch(
            {name: draw.distribution() for name, draw in self.draws.items()},
            metric=metric,
            mode="max",
            points_to_evaluate=[self._parameters(point) for point in self.waiting],
            seed=mix(seed, len(book.points)) % 2**32,  # another one when the search continues, else it would repeat itself
        )
        for text, value in done.items():
            self._optuna.add_evaluated_point(self._parameters(json.loads(text)), value)
        self._unstarted = {json.dumps(point) for point in self.waiting}

    def suggest(self, trial_id: str) -> Any:
        """{"point": the next point as JSON}, or Searcher.FINISHED."""
        for number in range(TRIES):
            name = f"{trial_id}.{number}"
            given: Any = self._optuna.suggest(name)
            point = {key: draw.from_optuna(given[key]) for key, draw in self.draws.items()}
            text = json.dumps(point)
            if text not in self._unstarted and point in self.book.points:
                value = self.results.get(text)
                self._optuna.on_trial_complete(name, None if value is None else {self.metric: value}, error=value is None)
                continue
            if text not in self._unstarted:
                self.book.add([point])
            self._unstarted.discard(text)
            self._names[trial_id] = name
            return {"point": text}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Optuna learns from the last result."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        failed = error or not result or bool(result.get("reason"))
        self._optuna.on_trial_complete(self._names[trial_id], None if failed else result, error=failed)

    def save(self, checkpoint_path: str) -> None:
        """The state is in the PointBook; Ray Tune only wants a file."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def _parameters(self, point: Point) -> dict[str, Any]:
        return {name: draw.to_optuna(point[name]) for name, draw in self.draws.items()}
