"""Settings of the connection to Ray, shared by all programs."""

import math
import os
from dataclasses import dataclass, replace

from reidssl.checks import at_least


@dataclass(kw_only=True)
class RuntimeConfig:
    """How to connect to Ray or start it."""

    address: str = ""
    """host:port of the head of a Ray cluster, or "auto" for the cluster on this machine. Empty: RAY_ADDRESS, else the cluster of
    the current job, else start a local Ray."""
    num_cpus: int = 0
    """Logical CPUs of a local Ray; 0: the cores of this machine, but at least 4, so that reading overlaps training."""
    num_gpus: int = -1
    """GPUs of a local Ray; -1: all GPUs of this machine."""
    dashboard: bool = False
    """Start the dashboard of a local Ray, on localhost only."""
    object_store_gib: float = 0.0
    """Size of the object store of a local Ray in GiB; 0: 2 GiB."""

    def __post_init__(self) -> None:
        at_least(0, "(all cores)", num_cpus=self.num_cpus)
        at_least(-1, "(all there are)", num_gpus=self.num_gpus)
        at_least(0, "(default)", object_store_gib=self.object_store_gib)

    @property
    def local_cpus(self) -> int:
        """CPUs that a local Ray has."""
        return self.num_cpus or max(4, os.cpu_count() or 1)

    def beside(self, workers: float, reading: float) -> "RuntimeConfig":
        """The same, where a local Ray that has just the CPUs for the workers also gets some for reading."""
        room = math.ceil(workers + reading)
        return self if self.num_cpus or workers > self.local_cpus or room <= self.local_cpus else replace(self, num_cpus=room)
