"""The one policy for images that cannot be decoded: set aside, counted, listed with their reasons, fatal only above a share."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from platform.engine.errors import UserError

LISTED = 100
SAID = 10


def most_corrupt(max_share: float, total: int) -> float:
    """How many of `total` images may be unreadable: the share of them, but a single one is never too many unless it is 0."""
    return max(max_share * total, 1.0) if max_share else 0.0


def problems_of(keys: Sequence[str], reasons: Sequence[str]) -> np.ndarray:
    """str (N,): what to say of each image; "" where its reason is "", so of those that can be decoded."""
    return np.asarray(
        [reason and f"image '{key}' cannot be decoded ({reason})" for key, reason in zip(keys, reasons, strict=True)],
        dtype=object,
    )


class SetAside:
    """The images of one pass over a data set that cannot be decoded.

    where: what a message calls the data set; total: its images; option: the name of the setting that gave `max_share`.
    """

    def __init__(self, where: str, total: int, max_share: float, option: str) -> None:
        self.where, self.total, self.option = where, total, option
        self.limit = most_corrupt(max_share, total)
        self.count = 0
        self.problems: list[str] = []

    def add(self, problems: Iterable[str]) -> list[str]:
        """Count those that are not ""; returns them. Raises UserError above the limit, and where no image is left."""
        found = [problem for problem in problems if problem]
        self.count += len(found)
        self.problems = (self.problems + found)[:LISTED]
        if found and self.count == self.total:
            raise UserError(
                f"none of the {self.total:,} images of {self.where} can be decoded: {'; '.join(self.problems[:3])}. "
                "Ingest the data set again"
            )
        if self.count > self.limit:
            raise UserError(
                f"{self.count:,} of the {self.total:,} images of {self.where} cannot be decoded, more than "
                f"{self.option} allows ({self.limit:,.0f}): {'; '.join(self.problems[:3])}. Ingest the data set "
                f"again, or raise {self.option}"
            )
        return found

    def watch(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches as they come, with their "problem" column counted and its first entries said."""
        from platform.engine.runtime.terminal import say

        for batch in batches:
            before = self.count
            for place, problem in enumerate(self.add(batch["problem"])):
                if before + place < SAID:
                    say(f"set aside: {problem}")
            yield batch

    def summary(self) -> dict[str, Any]:
        """For summary.json: how many, and the first reasons."""
        return {"corrupt_images": self.count, "corrupt": self.problems}
