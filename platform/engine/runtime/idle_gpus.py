"""A line about GPUs that a program leaves unused: Ray hides them from every process that does not reserve one."""

from collections.abc import Mapping

from platform.engine.runtime.terminal import say

_told: set[str] = set()


def tell_idle_gpus(reserved: Mapping[str, float]) -> None:
    """Say which settings are 0 although Ray has free GPUs. A program says it once for each kind of setting.

    Processes that a program starts say nothing: the program has said it for all of them.

    Args:
        reserved: name of a setting -> GPUs that it reserves.
    """
    import ray

    zero = {name: ".".join(name.split(".")[-2:]) for name, gpus in reserved.items() if not gpus}
    names = [name for name, kind in zero.items() if kind not in _told]
    if not names or ray.get_runtime_context().get_actor_id() is not None:
        return
    if ray.available_resources().get("GPU", 0) > 0:
        _told.update(zero.values())
        are, them = ("are", "each") if len(names) > 1 else ("is", "it")
        say(f"this Ray has idle GPUs, but {' and '.join(names)} {are} 0: set {them} to 1 to use a GPU")
