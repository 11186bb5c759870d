"""Numbers for Ray's Prometheus port, as `ray_reidssl_<name>` with the tag `run`, the URI of the run folder."""

from collections.abc import Mapping
from typing import Any

from platform.engine.secrets import hide

STEP_PARTS = ("input_wait_seconds", "crops_seconds", "compute_seconds", "exchange_seconds", "saving_seconds")
"""Where the time of a pre-training step goes, in seconds of rank 0; "step_seconds" is the whole."""
OPERATION = (*STEP_PARTS, "step_seconds", "workers", "recoveries", "steps_lost", "collapse_signs", "gpu_memory_gib")
"""What is logged for those who operate a cluster, and says nothing about the model."""

_gauges: dict[str, Any] = {}


def show(run: str, values: Mapping[str, float]) -> None:
    """Set the current values of a run. Does nothing in a process without Ray."""
    import ray
    from ray.util.metrics import Gauge

    if not ray.is_initialized():
        return
    for name, value in values.items():
        if name not in _gauges:
            safe = "".join(char if char.isalnum() else "_" for char in name)
            _gauges[name] = Gauge(f"reidssl_{safe}", description=f"re-ID: {name}", tag_keys=("run",))
        _gauges[name].set(value, {"run": hide(run)})
