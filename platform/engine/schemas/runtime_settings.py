"""How to reach Ray."""

from dataclasses import dataclass


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
        if self.num_cpus < 0:
            raise ValueError(f"num_cpus must be 0 (all cores) or more: got {self.num_cpus}")
        if self.num_gpus < -1:
            raise ValueError(f"num_gpus must be -1 (all there are) or more: got {self.num_gpus}")
        if self.object_store_gib < 0:
            raise ValueError(f"object_store_gib must be 0 (default) or more: got {self.object_store_gib}")
