"""Nearest neighbours in a set that is shared out over Ray actors: more images than one machine holds or one can search in time.

Each actor loads its share of the features (a slice of an array, or Parquet files in object storage), makes it ready to be
searched and keeps it. Queries travel block by block: an actor hands out a block of its own images, every actor looks for their
nearest among its share, and the answers are merged exactly, equal similarities by rising index. So the table does not depend
on the number of actors. A lost actor is started again by Ray, loads its share again and answers again.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from platform.engine.device import use_threads
from platform.engine.errors import UserError, user_error_of
from platform.engine.parts import as_array
from platform.engine.storage import Location
from reidssl.clustering.index import NeighbourIndex, in_order

FEATURE = "feature"
Neighbours = tuple[np.ndarray, np.ndarray]


@dataclass(kw_only=True)
class NeighbourActorsConfig:
    """Actors that share the neighbour search."""

    actors: int = 0
    """Actors, each with its share of the features; 0: no actors, the process that clusters searches by itself."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor, and its threads."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor; used by FAISS's GPU build."""
    block: int = 8192
    """Images whose neighbours are looked for at a time."""

    def __post_init__(self) -> None:
        if self.actors < 0 or self.block < 1:
            raise ValueError(f"actors must be 0 or more and block at least 1: got {self.actors}, {self.block}")
        if self.cpus_per_actor <= 0 or self.gpus_per_actor < 0:
            raise ValueError(f"cpus_per_actor must be positive and gpus_per_actor not negative: got {self.cpus_per_actor}, "
                             f"{self.gpus_per_actor}")


class Part(Protocol):
    """Some consecutive rows of the features, wherever they lie."""

    @property
    def rows(self) -> int:
        """How many."""

    def read(self) -> np.ndarray:
        """float32 (rows, D)."""


@dataclass(frozen=True)
class ObjectPart:
    """A slice of an array in Ray's object store. It goes with its owner's machine; Parquet files do not."""

    reference: Any
    rows: int

    def read(self) -> np.ndarray:
        import ray

        return ray.get(self.reference)


@dataclass(frozen=True)
class ParquetPart:
    """A Parquet file with a column `feature` of fixed-size lists of float32."""

    file: Location
    rows: int

    def read(self) -> np.ndarray:
        with self.file.open_input() as opened, self.file.errors("read"):
            table = pq.ParquetFile(opened).read(columns=[FEATURE])
        if table.num_rows != self.rows:
            raise UserError(f"{self.file.uri} has {table.num_rows} rows instead of {self.rows}: it was changed meanwhile; make "
                            "the features again")
        return as_array(table[FEATURE])


def array_parts(features: np.ndarray, count: int) -> list[Part]:
    """`features` (N, D) in the object store, in at most `count` slices of about equal size."""
    import ray

    slices = np.array_split(np.ascontiguousarray(features, np.float32), min(count, len(features)))
    return [ObjectPart(ray.put(piece), len(piece)) for piece in slices]


class Shard:
    """Actor: one share of the features. It loads when it is first asked, so also after a restart."""

    def __init__(self, parts: Sequence[Part], search: str, effort: int, threads: int) -> None:
        self.parts, self.search, self.effort, self.threads = parts, search, effort, threads
        self._index: NeighbourIndex | None = None

    def index(self) -> NeighbourIndex:
        if self._index is None:
            use_threads(self.threads)
            self._index = NeighbourIndex(np.concatenate([part.read() for part in self.parts]), self.search, self.effort)
        return self._index

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start, D), of length one."""
        return self.index().images[start:stop].cpu().numpy()

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray) -> Neighbours:
        """Of this share, numbered from 0; own: int64, the image that is the query itself, or -1."""
        return self.index().nearest(queries, k, own)


def sharded_neighbours(parts: Sequence[Part], k: int, config: NeighbourActorsConfig, search: str = "exact",
                       effort: int = 0) -> Neighbours:
    """The k nearest images of every image of all parts together, itself first.

    Args:
        parts: the features in order; an actor gets consecutive ones, about as many rows as the others.
        search, effort: how each actor searches its share, see reidssl.clustering.index.

    Returns:
        indices int64 (N, min(k, N)), -1 where an approximate search found fewer, and similarities float32.

    Raises:
        UserError: fewer CPUs or GPUs than the actors reserve, features that cannot be read or are no numbers.
    """
    import ray

    shares = _shares(parts, config.actors)
    _check_resources(config, len(shares))
    remote: Any = ray.remote(num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=-1, max_task_retries=-1)
    threads = max(1, int(config.cpus_per_actor))
    actors = [remote(Shard).remote(share, search, effort, threads) for share in shares]
    sizes = [sum(part.rows for part in share) for share in shares]
    starts = [0, *itertools.accumulate(sizes)]
    k = min(k, starts[-1])
    indices, similarities = np.empty((starts[-1], k), np.int64), np.empty((starts[-1], k), np.float32)
    waiting: deque[tuple[np.ndarray, list[Any]]] = deque()

    def collect() -> None:
        mine, references = waiting.popleft()
        indices[mine], similarities[mine] = _merged(ray.get(references), starts, mine, k)

    try:
        for shard, size in enumerate(sizes):
            for start in range(0, size, config.block):
                stop = min(start + config.block, size)
                queries = actors[shard].rows.remote(start, stop)
                answers = []
                for number, actor in enumerate(actors):
                    own = np.arange(start, stop) if number == shard else np.full(stop - start, -1)
                    answers.append(actor.nearest.remote(queries, k, own))
                waiting.append((np.arange(start, stop) + starts[shard], answers))
                if len(waiting) > 2:  # one being answered, one in reserve: more would only fill the object store
                    collect()
        while waiting:
            collect()
    except Exception as error:
        raise _explained(error) from None
    finally:
        for actor in actors:
            ray.kill(actor)
    return indices, similarities


def _merged(answers: Sequence[Neighbours], starts: Sequence[int], mine: np.ndarray, k: int) -> Neighbours:
    """The best k of all shares' answers, in the numbering of the whole set."""
    numbers = [np.where(found < 0, -1, found + start) for (found, _), start in zip(answers, starts, strict=False)]
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


def _check_resources(config: NeighbourActorsConfig, count: int) -> None:
    import ray

    total = ray.cluster_resources()
    for kind, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        if each * count > total.get(kind, 0):
            raise UserError(f"{count} neighbour actors need {each * count:g} {kind}, this Ray has {total.get(kind, 0):g}: lower "
                            "the number of actors or what each reserves, or connect to a larger cluster")


def _explained(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError):  # features that are no numbers: the library's own words
        return UserError(f"the features cannot be searched: {str(cause).splitlines()[0]}")
    return user_error_of(error) or error
