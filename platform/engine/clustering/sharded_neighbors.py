"""Nearest neighbors in a set that is distributed over Ray actors, for more images than one machine can hold or search in time.

Each actor loads its share of the features (a slice of an array, or Parquet files in object storage), builds its index and keeps
it. Queries travel block by block: an actor sends a block of its own images, every actor searches its share for their nearest
images, and the answers are merged exactly (equal similarities by ascending index). So the table of an exact search does not
depend on the number of actors. An approximate search builds an index of each share separately. Other steps ask the same actors
for the similarities of chosen pairs (sharded_labels.py). Ray restarts a lost actor, which loads its share again.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from platform.engine.clustering.shard_actor import Shard
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.features import Part
from platform.engine.runtime.growth import autoscales, may_grow
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.schemas.retrieval_settings import NeighborActorsConfig
from platform.engine.train.scaling import ScalingConfig
from reidssl.clustering.index import in_order
from reidssl.clustering.neighbors import Neighbors

RESTARTS = 10
"""Largest number of restarts of an actor. Without it, an actor whose share does not fit into memory would restart forever."""


class FeatureShards:
    """The features of all parts, distributed over actors.

    starts: first image of each share; sizes: images of each share; num: N, the number of all images.
    """

    def __init__(self, parts: Sequence[Part], config: NeighborActorsConfig, search: str, effort: int) -> None:
        import ray

        shares = _shares(parts, config.actors)
        _check_resources(config, len(shares))
        if search == "exact":  # the others use a GPU only with a special build of FAISS
            tell_idle_gpus({"neighbors.gpus_per_actor": config.gpus_per_actor})
        self.config = config
        remote: Any = ray.remote(
            num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=RESTARTS, max_task_retries=-1
        )
        self.sizes = [sum(part.rows for part in share) for share in shares]
        self.starts = np.asarray([0, *itertools.accumulate(self.sizes)][:-1])
        self.num = sum(self.sizes)
        self.actors = [remote(Shard).remote(share, search, effort, config.threads) for share in shares]

    def neighbors(self, k: int) -> Neighbors:
        """The k nearest images of every image, with itself first.

        Returns (indices int64 (N, min(k, N)), -1 where none was found; similarities float32 of the same shape).
        """
        return self._found(np.arange(self.num), k, "nearest")

    def nearest_exact(self, chosen: np.ndarray, k: int) -> Neighbors:
        """As `neighbors`, but for the images `chosen` (ascending indices) and by an exhaustive search."""
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
                if len(waiting) > 2:  # enough to keep the actors busy; more would only fill the object store
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
        """Yields (start, stop, result) for blocks of images, in any order; results are computed from similarities of pairs.

        An actor proposes the pairs of a block of its images and sends the features of the block to all actors. Only similarities
        come back.

        Args:
            table: (N, k), sent to each node once.
            proposal: see Shard.propose.
            conclusion: (start, stop) -> function of (counts, others, cosines) that returns the result of the block.
            block: images in a block.
        """
        import ray

        reference, count = ray.put(table), 1 + len(self.actors)
        blocks = [
            [(start, min(start + block, first + size)) for start in range(first, first + size, block)]
            for first, size in zip(self.starts, self.sizes, strict=True)
        ]
        waiting: deque[list[tuple[int, int, Any]]] = deque()
        for together in itertools.zip_longest(*blocks):  # actors work in call order: all propose first
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
    """Context manager: the features distributed over actors, which end with the `with` block.

    Args:
        parts: the features in order. Each actor gets consecutive parts, with about the same number of rows.
        search, effort: how each actor searches its share, see reidssl.clustering.index.

    Raises:
        UserError: too few CPUs or GPUs for the actors, unreadable or non-finite features, or an actor that dies repeatedly.
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
    """The k nearest images of every image of all parts together, with itself first. Arguments and errors as in `shared_out`.

    Returns:
        (indices int64 (N, min(k, N)), -1 where an approximate search found fewer; similarities float32 of the same shape).
    """
    with shared_out(parts, config, search, effort) as shards:
        return shards.neighbors(k)


def _merged(answers: Sequence[Neighbors], starts: Sequence[int] | np.ndarray, mine: np.ndarray, k: int) -> Neighbors:
    """The best k of the answers of all shares, with indices of the whole set."""
    numbers = [np.where(found < 0, -1, found + start) for (found, _), start in zip(answers, starts, strict=True)]
    merged = in_order(np.concatenate(numbers, axis=1), np.concatenate([each for _, each in answers], axis=1), mine)
    merged[1][:, 0] = 1.0
    return merged[0][:, :k], merged[1][:, :k]


def _shares(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """At most `count` non-empty shares of consecutive parts; a part goes to the share that contains its middle row."""
    if not parts:
        raise UserError("there are no features to search: the data set is empty")
    rows = np.asarray([part.rows for part in parts])
    owner = (2 * np.cumsum(rows) - rows) * count // (2 * rows.sum())
    return [[part for part, of in zip(parts, owner, strict=True) if of == number] for number in np.unique(owner)]


def _check_resources(config: NeighborActorsConfig, count: int) -> None:
    """Raise UserError if a single machine has too few CPUs or GPUs. Clusters are not checked, because they may grow."""
    import ray

    if may_grow():
        return
    total = ray.cluster_resources()
    for kind, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        if each * count > total.get(kind, 0):
            raise UserError(
                f"{count} neighbor actors need {each * count:g} {kind}, this Ray has {total.get(kind, 0):g}: lower "
                "the number of actors or what each reserves, or connect to a larger cluster"
            )


def check_room(config: NeighborActorsConfig, workers: ScalingConfig, runs: int = 1) -> None:
    """Check that the neighbor actors of one run fit beside the workers of `runs` runs at a time, which keep their CPUs and GPUs.

    Raises UserError if they do not and no autoscaler adds nodes: the run would wait for its actors forever.
    """
    import ray

    if not config.actors or autoscales():
        return
    total, beside = ray.cluster_resources(), runs * workers.fewest
    for kind, each, own in (
        ("CPU", config.cpus_per_actor, workers.cpus_per_worker),
        ("GPU", config.gpus_per_actor, workers.gpus_per_worker),
    ):
        needed = config.actors * each + beside * own
        if each and needed > total.get(kind, 0):
            raise UserError(
                f"{config.actors} neighbor actors beside {beside} workers need {needed:g} {kind}, this Ray has "
                f"{total.get(kind, 0):g}: lower neighbors.actors or neighbors.{kind.lower()}s_per_actor, or connect to a larger "
                "cluster"
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
    if isinstance(cause, ValueError):  # unusable features: keep the message of the library
        return UserError(f"the features cannot be searched: {str(cause).splitlines()[0]}")
    return user_error_of(error) or error
