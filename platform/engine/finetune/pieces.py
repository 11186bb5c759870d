"""One optimizer step over several pieces (micro-batches) of its batch, with losses that see the whole batch.

Batch-hard mining, the batch norm of the neck and the cluster memory need all features of a step. So the features of all pieces
are gathered first. Then each piece goes through the backbone with gradients, its features replace the gathered ones at their
rows, and the loss of the whole batch is computed and differentiated (gradient caching, GradCache, arXiv 2101.06983). The result
does not depend on which worker computes which piece. Shapes: B images of the step, b images of a piece, S pieces, D feature
width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from platform.engine.train.step import StepRows


def cut(batch: int, pieces: int) -> list[slice]:
    """The rows of each piece. Sizes differ by at most one; if the batch is smaller than `pieces`, some pieces are empty."""
    full, rest = divmod(batch, pieces)
    starts = [number * full + min(number, rest) for number in range(pieces + 1)]
    return [slice(starts[number], starts[number + 1]) for number in range(pieces)]


def rows_to_compute(piece: slice) -> slice:
    """The rows that go through the backbone for a piece.

    An empty piece computes row 0, and its feature is not used. So every worker has the same number of passes, and batch norm
    never gets an empty batch.
    """
    return piece if piece.stop > piece.start else slice(0, 1)


class StepFeatures:
    """The gathered features (B, D) of a step, in which the features of one piece can be replaced.

    As in the sample stream, worker j mod the number of workers computes piece j.
    """

    def __init__(self, pieces: Sequence[slice]) -> None:
        self.pieces = pieces
        self._known: Tensor | None = None

    def gather(self, own: Sequence[Tensor]) -> Tensor:
        """Gather the features (B, D) of all workers, and return them. Collective.

        own: features (b, D) of each piece of this worker, in the order of the pieces.
        """
        largest = max(piece.stop - piece.start for piece in self.pieces)
        rows = StepRows()
        for features in own:
            padding = largest - len(features)
            rows.add({"features": F.pad(features.detach(), (0, 0, 0, padding)) if padding > 0 else features[:largest]})
        padded = rows.gather()["features"].unflatten(0, (len(self.pieces), largest))
        self._known = torch.cat(
            [features[: piece.stop - piece.start] for features, piece in zip(padded, self.pieces, strict=True)]
        )
        return self._known

    def among_all(self, piece: slice, features: Tensor) -> Tensor:
        """The features (B, D) of the step, with gradients that flow to the features (b, D) of this piece only.

        Collective if `gather` was not called before: with one piece per worker, no separate pass is needed. The values are the
        gathered ones, bit for bit the same on all workers. The engine divides the gradient of every piece by S, as for a mean
        over micro-batches. The neck and classifier get their whole gradient S times, but the features of a piece get theirs only
        once, so it is multiplied by S here.
        """
        if len(self.pieces) == 1:
            return features
        if self._known is None:
            self.gather([features])
        assert self._known is not None
        features = features[: piece.stop - piece.start]
        placed = self._known[piece] + len(self.pieces) * (features - features.detach())
        return torch.cat([self._known[: piece.start], placed, self._known[piece.stop :]])
