"""The settings of platform.select."""

import builtins
from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.schemas.retrieval_settings import NeighborActorsConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, within
from reidssl.clustering.cluster_config import check_search


@dataclass(kw_only=True)
class DuplicatesConfig:
    """Removal of near duplicates before the selection, from the features that platform.score kept (features=true)."""

    similarity: float = 0.0
    """Leave out an image if a better one is as similar as this (cosine of the source proxy's features); 0: leave out none."""
    k: int = 20
    """Neighbors of an image that are compared with it."""
    search: str = "exact"
    """Neighbor search: exact, ivf or hnsw."""
    neighbors: NeighborActorsConfig = field(default_factory=lambda: NeighborActorsConfig(actors=2))
    """Actors that share the neighbor search."""

    def __post_init__(self) -> None:
        within("[0, 1]", similarity=self.similarity)
        at_least(1, k=self.k, **{"neighbors.actors": self.neighbors.actors})
        check_search(self.search, 0)


@dataclass(kw_only=True)
class SelectConfig:
    """Everything a selection depends on."""

    output: OutputPath = "runs/selection"
    """Folder of the selection index."""
    scores: InputPath = ""
    """Folder written by platform.score."""
    list: InputPath = ""
    """Published ranking to use instead of scores: a pickled list of keys, best first."""
    allow_short: bool = False
    """Accept fewer images than asked for, if the list names fewer or fewer are left without near duplicates. false: raise an
    error."""
    random: bool = False
    """Select a random subset instead. It is the control of a selection: a smaller set is also seen more often."""
    seed: int = 0
    """Seed of the random subset, and of the draw of `among`."""
    reference: InputPath = ""
    """Ranking to compare with: a published list, or a folder of platform.score or platform.select."""
    compare: builtins.list[InputPath] = field(default_factory=builtins.list)
    """Select nothing, and compare every two of these rankings: lists, and folders of platform.score or platform.select."""
    compare_at: builtins.list[float] = field(default_factory=lambda: [0.05, 0.1, 0.25, 0.5, 0.75, 0.9])
    """Top fractions whose overlap is reported by comparisons, beside `fraction`."""
    fraction: float = 0.5
    """Share to keep of the images that have a score."""
    count: int = 0
    """Number of images to keep, instead of `fraction`; 0: use `fraction`."""
    threshold: float | None = None
    """Keep the images with at least this score, instead of `fraction` (scores only)."""
    inverse: bool = False
    """Keep the worst images instead of the best: another control. With a threshold: those with at most this score."""
    among: float = 0.0
    """Draw the images at random among this share of the best, instead of taking the very best: 0.75 leaves out the worst quarter
    and prefers nobody among the rest. 0: take the best."""
    stratify: str = ""
    """Column whose values (cameras, videos) are strata that keep at least `floor`; or "folder", the folder of the key."""
    floor: float = 0.0
    """Share of each stratum that is always kept, its best images. With the value of `fraction`, all strata keep this share. Near
    duplicates and images that a list does not name are left out before."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    materialize: bool = False
    """Also write the selected images as new shards in `data` below output, to train on without the index."""
    shard_mb: int = 64
    """Approximate size of a new shard in MiB of images."""
    write_list: bool = False
    """Also write list.pkl below output: the selected images in the published format, best first."""
    data: InputPath = "runs/demo/data/pretrain"
    """Shards to select from."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        within("(0, 1]", fraction=self.fraction, **{f"compare_at[{place}]": one for place, one in enumerate(self.compare_at)})
        within("[0, 1]", floor=self.floor, among=self.among)
        at_least(0, seed=self.seed, count=self.count)
        at_least(1, shard_mb=self.shard_mb)
        given = [name for name in ("scores", "list", "random", "compare") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"scores, list, random and compare exclude each other: got {' and '.join(given)}")
        if len(self.compare) == 1:
            raise ValueError(f"compare needs two rankings or more: got {self.compare[0]}")
        if self.count and self.threshold is not None:
            raise ValueError(f"count and threshold exclude each other: got {self.count} and {self.threshold}")
        if self.threshold is not None and not self.scores:
            raise ValueError("threshold is for scores: give scores=<folder of platform.score>, or use fraction or count")
        if self.inverse and self.random:
            raise ValueError("inverse is for scores and lists: the inverse of a random subset is a random subset")
        if self.among and (self.random or self.compare or self.threshold is not None):
            raise ValueError(
                "among draws a fraction or a count from the best by scores or a list: leave out random, compare, threshold"
            )
        if self.among and not self.count and self.among < self.fraction:
            raise ValueError(f"among must be at least fraction ({self.fraction:g}), or 0 to take the best: got {self.among:g}")
        if self.floor and self.threshold is not None:
            raise ValueError(
                "floor and threshold exclude each other (a floor keeps images below the threshold): use fraction or count"
            )
        if self.floor and self.among:
            raise ValueError(
                "floor and among exclude each other (a draw among the best leaves out strata): use one of them, got floor="
                f"{self.floor:g} and among={self.among:g}"
            )
        if bool(self.floor) != bool(self.stratify):
            raise ValueError(
                "floor is the share of a stratum that stratify=<column> names, e.g. stratify=camid floor=0.2: give both or "
                f"neither, got floor={self.floor:g} and stratify='{self.stratify}'"
            )
        if self.duplicates.similarity and not self.scores:
            raise ValueError("duplicates.similarity needs features: give scores=<folder of platform.score with features=true>")
        if self.allow_short and not (self.list or self.duplicates.similarity):
            raise ValueError("allow_short is for a list or duplicates.similarity: give list=<published order>, or leave it out")
