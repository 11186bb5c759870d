"""One optimizer step over several pieces of its batch: losses see the whole batch, a worker's gradient is that of its pieces.

Batch-hard mining, the neck's batch norm and the cluster memory look at all features of a step. So the features of all pieces are
gathered first; then every piece goes through the backbone with its gradients, stands in its place among the others' features,
and the whole loss is computed and its gradient taken (gradient caching, GradCache, arXiv 2101.06983). Who computes which piece
changes nothing. Shapes: B images of the step, b of a piece, S pieces, D the feature's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from platform.engine.train.step import StepRows


def cut(batch: int, pieces: int) -> list[slice]:
    """The rows of each piece: sizes differ by one at most, so a batch smaller than `pieces` leaves some empty."""
    full, rest = divmod(batch, pieces)
    starts = [number * full + min(number, rest) for number in range(pieces + 1)]
    return [slice(starts[number], starts[number + 1]) for number in range(pieces)]


def rows_to_compute(piece: slice) -> slice:
    """The rows that go through the backbone for a piece. An empty one takes an image along, whose feature nobody uses: every
    worker has as many passes, and batch norm something to normalize."""
    return piece if piece.stop > piece.start else slice(0, 1)


class StepFeatures:
    """The features (B, D) of a step, and a piece's own among them.

    Piece j is computed by worker j mod the number of workers, as micro-batches are.
    """

    def __init__(self, pieces: Sequence[slice]) -> None:
        self.pieces = pieces
        self._known: Tensor | None = None

    def gather(self, own: Sequence[Tensor]) -> None:
        """Collective: this worker's features (b, D), one tensor for each of its pieces in their order."""
        largest = max(piece.stop - piece.start for piece in self.pieces)
        rows = StepRows()
        for features in own:
            padding = largest - len(features)
            rows.add({"features": F.pad(features.detach(), (0, 0, 0, padding)) if padding > 0 else features[:largest]})
        padded = rows.gather()["features"].unflatten(0, (len(self.pieces), largest))
        self._known = torch.cat(
            [features[: piece.stop - piece.start] for features, piece in zip(padded, self.pieces, strict=True)]
        )

    def among_all(self, piece: slice, features: Tensor) -> Tensor:
        """(b, D) of a piece -> (B, D) of the step, through which gradients flow to this piece alone.

        Collective where nothing was gathered before: a worker's only piece needs no pass of its own for that. The values are
        the gathered ones, bit for bit the same on all workers. The engine divides every piece's gradient by S, as suits a mean
        over micro-batches; what is behind this (neck, classifier) gets its whole gradient S times, features get theirs once,
        so theirs is multiplied by S here.
        """
        if len(self.pieces) == 1:
            return features
        if self._known is None:
            self.gather([features])
        assert self._known is not None
        features = features[: piece.stop - piece.start]
        placed = self._known[piece] + len(self.pieces) * (features - features.detach())
        return torch.cat([self._known[: piece.start], placed, self._known[piece.stop :]])
