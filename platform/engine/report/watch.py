"""Whether a run in a folder still goes on, for a report that is made again and again."""

import time

from platform.engine.report.contents import RunFolder
from platform.engine.runtime.rate import duration


def is_running(folder: RunFolder) -> bool:
    """Whether a run in the folder is not complete. The report of a pipeline is its last stage, so that one does not count."""
    if folder.is_pipeline and folder.results:
        return any(stage["status"] == "running" for name, stage in folder.results["stages"].items() if name != "report")
    return any(one.summary is None for one in folder.members)


class Watch:
    """Notices that no file of a run changes any more: a run that was killed leaves no summary and would be waited for forever.

    A file counts as changed if its name or size is new. Its time is not asked for: the clocks of object storage and of this
    machine differ, and a run that was just started again has old files. Pages (.html) are not the run's.
    """

    def __init__(self, quiet_s: float) -> None:
        """quiet_s: seconds without a change after which the run counts as ended; 0: never."""
        self.quiet_s = quiet_s
        self._files: frozenset[tuple[str, int]] | None = None
        self._changed = 0.0

    def has_ended(self, folder: RunFolder) -> bool:
        """Whether the files have stayed the same for `quiet_s` over the calls so far; call it after every reading."""
        files = frozenset((name, size) for name, size in folder.files if not name.endswith((".html", ".htm")))
        if files != self._files:
            self._files, self._changed = files, time.monotonic()
        return 0 < self.quiet_s <= time.monotonic() - self._changed

    def text(self, folder: RunFolder) -> str:
        """What the terminal says then."""
        return (
            f"no file of {folder.location.uri} has changed for {duration(self.quiet_s)}: the run was ended, or waits. The page "
            "is not made again; run the report again when the run goes on, or set quiet_s for one that writes less often"
        )
