"""Nearest neighbors in a set that is shared out over Ray actors: more images than one machine holds or one can search in time.

Each actor loads its share of the features (a slice of an array, or Parquet files in object storage), makes it ready to be
searched and keeps it. Queries travel block by block: an actor hands out a block of its own images, every actor looks for their
nearest among its share, and the answers are merged exactly, equal similarities by rising index. So the table of an exact search
does not depend on the number of actors; an approximate one makes its groups in each share by itself. Other steps ask the same
actors for the similarities of chosen pairs (jaccard.py). A lost actor is started again by Ray, loads its share again and
answers again.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from platform.engine.clustering.shard_actor import Shard
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.features import Part
from platform.engine.schemas.retrieval_settings import NeighborActorsConfig
from reidssl.clustering.index import in_order
from reidssl.clustering.neighbors import Neighbors

RESTARTS = 10
"""Of an actor; one whose share does not fit into memory would be started for ever."""


class FeatureShards:
    """The features of all parts, on actors."""

    def __init__(self, parts: Sequence[Part], config: NeighborActorsConfig, search: str, effort: int) -> None:
        import ray

        shares = _shares(parts, config.actors)
        _check_resources(config, len(shares))
        self.config = config
        remote: Any = ray.remote(
            num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=RESTARTS, max_task_retries=-1
        )
        self.sizes = [sum(part.rows for part in share) for share in shares]
        self.starts = np.asarray([0, *itertools.accumulate(self.sizes)][:-1])
        self.num = sum(self.sizes)
        self.actors = [remote(Shard).remote(share, search, effort, config.threads) for share in shares]

    def neighbors(self, k: int) -> Neighbors:
        """The k nearest images of every image, itself first: int64 (N, min(k, N)), -1 where none was found, and float32."""
        return self._found(np.arange(self.num), k, "nearest")

    def nearest_exact(self, chosen: np.ndarray, k: int) -> Neighbors:
        """The same for some images, rising, by comparing with all."""
        return self._found(chosen, k, "nearest_exact")

    def _found(self, chosen: np.ndarray, k: int, method: str) -> Neighbors:
        import ray

        k, block = min(k, self.num), self.config.block
        indices, similarities = np.empty((len(chosen), k), np.int64), np.empty((len(chosen), k), np.float32)
        waiting: deque[tuple[slice, list[Any]]] = deque()

        def collect() -> None:
            rows, references = waiting.popleft()
            indices[rows], similarities[rows] = _merged(ray.get(references), self.starts, chosen[rows], k)

        ends = np.searchsorted(chosen, [*self.starts, self.num])
        for shard, (first, last) in enumerate(itertools.pairwise(ends)):
            for start in range(first, last, block):
                rows = slice(start, min(start + block, last))
                places = chosen[rows] - self.starts[shard]
                queries = self.actors[shard].rows.remote(places)
                nobody = np.full(len(places), -1)
                waiting.append(
                    (
                        rows,
                        [
                            getattr(actor, method).remote(queries, k, places if number == shard else nobody)
                            for number, actor in enumerate(self.actors)
                        ],
                    )
                )
                if len(waiting) > 2:  # one being answered, one in reserve: more would only fill the object store
                    collect()
        while waiting:
            collect()
        return indices, similarities

    def pairs(
        self,
        table: np.ndarray,
        proposal: Callable[..., Neighbors],
        conclusion: Callable[[int, int], Callable[..., Any]],
        block: int,
    ) -> Iterator[tuple[int, int, Any]]:
        """Similarities of chosen pairs, and what follows from them: (start, stop, result) of blocks of rows in any order.

        An actor proposes the pairs of a block of its images, the block's features go to all, and only numbers come back.

        Args:
            table: (N, k), travels to each node once. proposal: see Shard.propose.
            conclusion: (start, stop) -> function of (counts, others, cosines) -> result.
            block: rows at a time.
        """
        import ray

        reference, count = ray.put(table), 1 + len(self.actors)
        blocks = [
            [(start, min(start + block, first + size)) for start in range(first, first + size, block)]
            for first, size in zip(self.starts, self.sizes, strict=True)
        ]
        waiting: deque[list[tuple[int, int, Any]]] = deque()
        for together in itertools.zip_longest(*blocks):  # actors answer in turn, so all propose before any is asked
            here = [(actor, *rows, first) for actor, rows, first in zip(self.actors, together, self.starts, strict=True) if rows]
            proposed = [
                actor.propose.options(num_returns=count).remote(proposal, reference, start, stop, self.starts)
                for actor, start, stop, _ in here
            ]
            results = []
            for (actor, start, stop, first), (own, *shares) in zip(here, proposed, strict=True):
                queries = actor.rows.remote(np.arange(start, stop) - first)
                answers = [each.cosines.remote(queries, pairs) for each, pairs in zip(self.actors, shares, strict=True)]
                results.append((start, stop, actor.conclude.remote(conclusion(start, stop), own, *answers)))
            waiting.append(results)
            if len(waiting) > 1:
                yield from ((start, stop, ray.get(result)) for start, stop, result in waiting.popleft())
        while waiting:
            yield from ((start, stop, ray.get(result)) for start, stop, result in waiting.popleft())


@contextmanager
def shared_out(
    parts: Sequence[Part], config: NeighborActorsConfig, search: str = "exact", effort: int = 0
) -> Iterator[FeatureShards]:
    """The features on actors, which end with the block.

    Args:
        parts: the features in order; an actor gets consecutive ones, about as many rows as the others.
        search, effort: how each actor searches its share, see reidssl.clustering.index.

    Raises:
        UserError: fewer CPUs or GPUs than the actors reserve, features that cannot be read or are no numbers, an actor that
            dies again and again.
    """
    import ray

    shards = FeatureShards(parts, config, search, effort)
    try:
        yield shards
    except Exception as error:
        raise _explained(error, len(shards.actors)) from None
    finally:
        for actor in shards.actors:
            ray.kill(actor)


def sharded_neighbors(
    parts: Sequence[Part], k: int, config: NeighborActorsConfig, search: str = "exact", effort: int = 0
) -> Neighbors:
    """The k nearest images of every image of all parts together, itself first; arguments and errors as in `shared_out`.

    Returns:
        indices int64 (N, min(k, N)), -1 where an approximate search found fewer, and similarities float32.
    """
    with shared_out(parts, config, search, effort) as shards:
        return shards.neighbors(k)


def _merged(answers: Sequence[Neighbors], starts: Sequence[int] | np.ndarray, mine: np.ndarray, k: int) -> Neighbors:
    """The best k of all shares' answers, in the numbering of the whole set."""
    numbers = [np.where(found < 0, -1, found + start) for (found, _), start in zip(answers, starts, strict=True)]
    merged = in_order(np.concatenate(numbers, axis=1), np.concatenate([each for _, each in answers], axis=1), mine)
    merged[1][:, 0] = 1.0
    return merged[0][:, :k], merged[1][:, :k]


def _shares(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """Consecutive parts, each to the share its middle falls into; none is empty."""
    if not parts:
        raise UserError("there are no features to search: the data set is empty")
    rows = np.asarray([part.rows for part in parts])
    owner = (2 * np.cumsum(rows) - rows) * count // (2 * rows.sum())
    return [[part for part, of in zip(parts, owner, strict=True) if of == number] for number in np.unique(owner)]


def _check_resources(config: NeighborActorsConfig, count: int) -> None:
    """UserError for what a single machine will never have; a cluster may grow, as in launch.py."""
    import ray

    if "RAY_CLUSTER_AUTOSCALES" in os.environ or len(ray.nodes()) > 1:
        return
    total = ray.cluster_resources()
    for kind, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        if each * count > total.get(kind, 0):
            raise UserError(
                f"{count} neighbor actors need {each * count:g} {kind}, this Ray has {total.get(kind, 0):g}: lower "
                "the number of actors or what each reserves, or connect to a larger cluster"
            )


def _explained(error: Exception, actors: int) -> Exception:
    from ray.exceptions import OutOfMemoryError, RayActorError

    cause = getattr(error, "cause", None)
    if isinstance(error, RayActorError | OutOfMemoryError) or isinstance(cause, RayActorError | OutOfMemoryError):
        return UserError(
            f"one of {actors} neighbor actors died again and again ({RESTARTS} restarts): its share of the "
            "features probably does not fit into the memory of its machine; use more actors (neighbors.actors) or "
            "larger machines"
        )
    if isinstance(cause, ValueError):  # features that cannot be: the library's own words
        return UserError(f"the features cannot be searched: {str(cause).splitlines()[0]}")
    return user_error_of(error) or error
