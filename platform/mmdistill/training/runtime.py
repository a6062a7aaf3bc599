"""One worker's view of its surroundings.

With several workers a batch is shared out by rows: each worker runs the networks on its part, the outputs
are gathered with their gradients, and every worker computes the loss of the *whole* batch. So terms that
compare rows with each other (transport, contrast) mean the same on one worker and on many.
"""

from typing import Protocol, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Runtime(Protocol):
    """What an order may know of where it runs."""

    rank: int
    world_size: int
    device: torch.device

    def share(self, rows_KB: Tensor) -> Tensor:
        """Return this worker's part of the rows of a batch."""

    def gather(self, part: Tensor) -> Tensor:
        """Return the parts of all workers joined along axis 1, with gradients to every part."""

    def average(self, gradient: Tensor) -> None:
        """Average a gradient over the workers, in place."""

    def first(self, value: Value) -> Value:
        """Return what the first worker holds; every worker must come here."""

    def beat(self) -> None:
        """Say that work goes on; called at every step."""


def in_order(outputs: Tensor) -> Tensor:
    """Return outputs whose gradient will lie in memory in the order of their axes.

    Collectives take that for granted: they send gradients by axes and receive them as they lie. Without any
    it is the same, so that one worker computes the bits of a group of one.
    """
    if outputs.requires_grad:
        outputs.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return outputs


class LocalRuntime:
    """One worker, no process group."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def share(self, rows_KB: Tensor) -> Tensor:
        """Return all rows."""
        return rows_KB

    def gather(self, part: Tensor) -> Tensor:
        """Return the part, which is everything."""
        return in_order(part)

    def average(self, gradient: Tensor) -> None:
        """Leave the gradient."""

    def first(self, value: Value) -> Value:
        """Return the value."""
        return value

    def beat(self) -> None:
        """Say nothing: nobody watches."""
