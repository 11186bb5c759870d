"""What a command says when its run is complete already."""

from contextlib import suppress

from platform.engine.data.shards import read_manifest
from platform.engine.errors import UserError
from platform.engine.runs.run_folder import Run
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location


def say_complete(run: Run, data: Location) -> None:
    """Say that `run` is complete, and whether its data set has changed since. The data set may be gone."""
    say(f"{run.program}: {run.location.uri} is complete already")
    before = (run.summary or {}).get("data_checksum")
    with suppress(UserError, OSError):
        now = read_manifest(data).checksum
        if before and now != before:
            say(
                f"{run.program}: the data set {data.uri} has changed since (checksum {str(before)[:12]}, now {now[:12]}): the "
                "results are of what it was; choose another output for new ones"
            )
