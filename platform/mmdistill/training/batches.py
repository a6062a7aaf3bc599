"""Which rows make up a batch: drawn per lane from its own seed, never from its neighbours'.

Axes: K lanes, T steps, B batch.
"""

from collections.abc import Mapping, Sequence

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

    def keep(self, lanes: Tensor) -> None:
        """Drop the streams of all lanes but some."""
        chosen = lanes.tolist()
        self._rows = [self._rows[k] for k in chosen]
        self._generators = [self._generators[k] for k in chosen]
        self._left = [self._left[k] for k in chosen]

    def state(self) -> dict[str, Tensor]:
        """Return where the streams are: the generators and what is left of the last passes."""
        return {
            "generators": torch.stack([generator.get_state() for generator in self._generators]),
            "left": torch.cat(self._left),
            "left_K": torch.tensor([len(left) for left in self._left]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of as many streams."""
        for generator, where in zip(self._generators, state["generators"], strict=True):
            # A copy: torch 2.13 ends the process on a state that is a view into a larger tensor.
            generator.set_state(where.clone())
        self._left = list(torch.split(state["left"], state["left_K"].tolist()))

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
