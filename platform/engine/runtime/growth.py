"""Whether the connected cluster may get nodes that do not exist yet.

Programs ask for what they may use. On a cluster that cannot grow, they check first that it exists.
"""

import os


def autoscales() -> bool:
    """Whether an autoscaler adds nodes on demand. The recipes say so with RAY_CLUSTER_AUTOSCALES, which jobs inherit."""
    return "RAY_CLUSTER_AUTOSCALES" in os.environ


def may_grow() -> bool:
    """Whether nodes may join: an autoscaler adds them, or there are several, of which some may be away at the moment."""
    import ray

    return autoscales() or len(ray.nodes()) > 1
