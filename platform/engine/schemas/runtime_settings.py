"""How to reach Ray."""

from dataclasses import dataclass

from reidssl.checks import at_least


@dataclass(kw_only=True)
class RuntimeConfig:
    """How to reach Ray."""

    address: str = ""
    """Cluster to connect to, host:port of its head ("auto" for the one on this machine); empty: RAY_ADDRESS, the job's, or a
    local start."""
    num_cpus: int = 0
    """Logical CPUs of a local start; 0: the cores of this machine, at least 4, so that reading overlaps training."""
    num_gpus: int = -1
    """GPUs of a local start; -1: all there are."""
    dashboard: bool = False
    """Start the dashboard (on localhost only) with a local Ray."""
    object_store_gib: float = 0.0
    """Object store of a local start in GiB; 0: Ray's default, at most 2."""

    def __post_init__(self) -> None:
        at_least(0, "(all cores)", num_cpus=self.num_cpus)
        at_least(-1, "(all there are)", num_gpus=self.num_gpus)
        at_least(0, "(default)", object_store_gib=self.object_store_gib)
