"""How a run shows its progress: a live line per arm on a terminal, plain lines elsewhere; on stderr."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmdistill.cli.printing import say
from mmdistill.cluster.progress import Event, Listener, silent
from mmdistill.records.rows import PHASES
from mmdistill.studies.planned import planned
from mmdistill.studies.session import Session


class Tally:
    """What has ended so far, runs that were on record before included.

    Attributes:
        expected: runs by arm and phase, when all goes well.
        runs: runs that ended by (arm, phase).
        orders: orders with runs that ended; shared stages are not counted, their number is not known ahead.
        total: orders with runs the study has.
    """

    def __init__(self, session: Session) -> None:
        arms = planned(session.study, session.blocks)
        self.arms = list(arms)
        self.expected = {name: arm.runs for name, arm in arms.items()}
        self.total = sum(sum(arm.orders.values()) for arm in arms.values())
        finals = list(session.folder.finals())
        self.orders = sum(bool(final.trials) for final in finals)
        self.runs = Counter((row.arm, row.phase) for final in finals for row in final.trials)

    def add(self, event: Event) -> None:
        """Count an order that ended, unless it is going to be tried again."""
        if event.outcome != "failed" and event.order.lanes:
            self.orders += 1
            self.runs.update((lane.arm, lane.phase) for lane in event.order.lanes)


class PlainProgress:
    """A line per order that ended."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the lines where they are."""

    def __call__(self, event: Event) -> None:
        """Print what ended."""
        self._tally.add(event)
        # A closed pipe must not end the study.
        with contextlib.suppress(OSError):
            say(line(event, self._tally))


def line(event: Event, tally: Tally) -> str:
    """Return one line about an order that ended."""
    width = len(str(tally.total))
    order = event.order
    size = _counted(len(order.lanes), "run") if order.lanes else _counted(len(order.stages), "stage")
    note = "" if event.outcome == "complete" else f"  {event.outcome}"
    ended = f"[{tally.orders:>{width + 1}}/{tally.total}]"
    return f"{ended} {order.title:<48} {size:>9} {event.seconds:7.1f} s{note}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


class LiveProgress:
    """A table that is redrawn in place."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self._tally, self._last, self._started = tally, "starting", time.monotonic()
        self._live = Live(get_renderable=self._screen, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __reduce__(self) -> tuple[Callable[[], Listener], tuple[()]]:
        # Tune pickles everything it is given, to be able to restore it; a terminal cannot come along.
        return _silence, ()

    def __call__(self, event: Event) -> None:
        """Take note of what ended; the next redraw shows it."""
        self._tally.add(event)
        self._last = f"{line(event, self._tally)}, {event.running} running"

    def _screen(self) -> Group:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return Group(
            self._table(), Text(f"{minutes}:{seconds:02d}  {self._last}", overflow="ellipsis", no_wrap=True)
        )

    def _table(self) -> Table:
        table = Table(box=None)
        table.add_column("arm")
        for phase in PHASES:
            table.add_column(phase, justify="right")
        for arm in self._tally.arms:
            table.add_row(arm, *(self._share(arm, phase) for phase in PHASES))
        return table

    def _share(self, arm: str, phase: str) -> str:
        ended, expected = self._tally.runs[arm, phase], self._tally.expected[arm][phase]
        return f"[{'green' if ended >= expected else 'default'}]{ended}/{expected}[/]"


def _silence() -> Listener:
    return silent


def progress_of(session: Session) -> PlainProgress | LiveProgress:
    """Return what suits stderr."""
    console = Console(file=sys.stderr)
    tally = Tally(session)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(tally, console)
    return PlainProgress(tally)
