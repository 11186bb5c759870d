"""The settings of platform.select."""

from dataclasses import dataclass, field

from platform.engine.config.paths import InputPath, OutputPath
from platform.engine.storage.location import StorageConfig
from reidssl.checks import at_least, within


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
    """Accept a list that names fewer images than `fraction` asks for, and keep only the named ones. false: raise an error."""
    random: bool = False
    """Select a random subset instead. It is the control of a selection: a smaller set is also seen more often."""
    seed: int = 0
    """Seed of the random subset."""
    reference: InputPath = ""
    """Published ranking to compare the scores with."""
    fraction: float = 0.5
    """Share to keep of the images that have a score."""
    data: InputPath = "runs/demo/data/pretrain"
    """Shards to select from."""
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        within("(0, 1]", fraction=self.fraction)
        at_least(0, seed=self.seed)
        given = [name for name in ("scores", "list", "random") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"scores, list and random exclude each other: got {' and '.join(given)}")
        if self.allow_short and not self.list:
            raise ValueError("allow_short is for a list: give list=<published order>, or leave it out")
