"""Which rows make up a batch: drawn per lane from its own seed, never from its neighbours'.

Axes: K lanes, T steps, B batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class BatchOrder:
    """An endless stream of shuffled rows per lane, cut into batches of one size.

    A lane passes through its rows in a new random order each time and drops the incomplete last batch, so
    no batch holds a row twice. Where a lane has fewer rows than a batch, batches span passes.
    """

    def __init__(self, rows: Sequence[Tensor], seeds: Sequence[int], batch_size: int) -> None:
        """Prepare the streams.

        Args:
            rows: the row indices of each lane.
            seeds: one per lane; equal seeds and rows mean equal batches in every arm.
            batch_size: B.
        """
        self._rows = list(rows)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._left = [torch.empty(0, dtype=torch.long) for _ in rows]
        self.batch_size = batch_size

    def take(self, steps: int) -> Tensor:
        """Return the next batches, rows_TKB."""
        lanes = [self._draw(lane, steps * self.batch_size) for lane in range(len(self._rows))]
        return torch.stack(lanes).view(len(lanes), steps, self.batch_size).transpose(0, 1)

    def _draw(self, lane: int, count: int) -> Tensor:
        pieces, total = [self._left[lane]], len(self._left[lane])
        while total < count:
            rows = self._rows[lane]
            order = torch.randperm(len(rows), generator=self._generators[lane])
            whole = len(rows) // self.batch_size * self.batch_size or len(rows)
            pieces.append(rows[order[:whole]])
            total += whole
        stream = torch.cat(pieces)
        self._left[lane] = stream[count:]
        return stream[:count]
