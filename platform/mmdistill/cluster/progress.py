"""What an executor tells of its progress."""

from typing import NamedTuple, Protocol

from mmdistill.pipeline.order import Order


class Event(NamedTuple):
    """An order ended.

    Attributes:
        outcome: ``complete``, ``failed`` (it is going to be tried again), ``given up`` or ``there already``.
        seconds: wall-clock seconds since the executor started it.
        running: orders still in flight.
    """

    order: Order
    outcome: str
    seconds: float
    running: int


class Listener(Protocol):
    """Hears every event; must be quick."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""


def silent(event: Event) -> None:
    """Take no note."""
