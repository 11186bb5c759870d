"""The policy for undecodable images: they are skipped, counted and listed with a reason; too many of them are an error."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from platform.engine.errors import UserError

LISTED = 100  # largest number of reasons that are stored
SAID = 10  # largest number of reasons that are printed


def most_corrupt(max_share: float, total: int) -> float:
    """How many of `total` images may be unreadable: max_share * total, but at least 1 unless max_share is 0."""
    return max(max_share * total, 1.0) if max_share else 0.0


def problems_of(keys: Sequence[str], reasons: Sequence[str]) -> np.ndarray:
    """Message about each image, str (N,), from the reasons of the decoder; "" for decodable images, whose reason is ""."""
    return np.asarray(
        [reason and f"image '{key}' cannot be decoded ({reason})" for key, reason in zip(keys, reasons, strict=True)],
        dtype=object,
    )


class SetAside:
    """Counts the undecodable images in one pass over a data set.

    Args:
        where: name of the data set, for messages.
        total: number of its images.
        max_share: largest share of undecodable images.
        option: name of the setting of `max_share`, for messages.
    """

    def __init__(self, where: str, total: int, max_share: float, option: str) -> None:
        self.where, self.total, self.option = where, total, option
        self.limit = most_corrupt(max_share, total)
        self.count = 0
        self.problems: list[str] = []

    def add(self, problems: Iterable[str]) -> list[str]:
        """Count the non-empty `problems` and return them. Raises UserError above the limit, or if no image can be decoded."""
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
        """Yields the batches unchanged. Counts their "problem" column and prints the first SAID problems. Raises UserError."""
        from platform.engine.runtime.terminal import say

        for batch in batches:
            before = self.count
            for place, problem in enumerate(self.add(batch["problem"])):
                if before + place < SAID:
                    say(f"set aside: {problem}")
            yield batch

    def summary(self) -> dict[str, Any]:
        """Entries for summary.json: the count, and the first LISTED reasons."""
        return {"corrupt_images": self.count, "corrupt": self.problems}
