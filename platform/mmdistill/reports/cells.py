"""What stands in one cell of a table: the same text in every format, marked up by each in its own way."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mmdistill.reports.ablation import ArmSummary
from mmdistill.reports.claims import Claim
from mmdistill.statistics import Interval

NOTHING = "-"


class Cell(NamedTuple):
    """A cell.

    Attributes:
        lead: a number that may be bold or underlined, or all of a text.
        rest: what follows a number: the half-width or the ends of its intervals.
        is_number: whether it may be set as mathematics.
    """

    lead: str
    rest: str = ""
    is_number: bool = False

    @property
    def text(self) -> str:
        """Return the cell without markup."""
        return f"{self.lead} {self.rest}".strip()


class TextTable(NamedTuple):
    """A table beside that of the arms.

    Attributes:
        header: titles of the columns.
        lines: cells as text.
        left: places of the columns that read from the left.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: Collection[int]


def number(value: float | None) -> Cell:
    """Return a number with three digits; ``-`` for what was not measured."""
    if value is None or not math.isfinite(value):
        return Cell(NOTHING)
    return Cell(f"{value:.3f}", is_number=True)


def score(interval: Interval) -> Cell:
    """Return a mean with the half-width of its interval, where it has one."""
    half = "" if math.isnan(interval.low) else f"± {interval.high - interval.mean:.3f}"
    return number(interval.mean)._replace(rest=half)


def difference(claim: Claim | None, *, crossed: bool) -> Cell:
    """Return a paired difference with its interval over replicates, and that over units with ``crossed``."""
    if claim is None or not claim.seeds.n:
        return Cell(NOTHING)
    intervals = [claim.seeds, claim.crossed] if crossed else [claim.seeds]
    return Cell(f"{claim.seeds.mean:+z.3f}", " ".join(map(ends, intervals)), is_number=True)


def ends(interval: Interval) -> str:
    """Return the ends of an interval in brackets."""
    return f"[{NOTHING}]" if math.isnan(interval.low) else f"[{interval.low:z.3f}, {interval.high:z.3f}]"


def judged(claim: Claim | None) -> str:
    """Return a verdict; ``*`` marks one that nobody planned, ``^n`` one planned after opening n."""
    if claim is None or claim.verdict is None:
        return NOTHING
    mark = f" ^{claim.after_opening}" if claim.after_opening else ""
    return claim.verdict + (mark if claim.question else " *")


def verdict(arm: ArmSummary, baseline: str) -> str:
    """Return what the verdict column says of an arm in a study with that baseline."""
    if arm.name == baseline:
        return "baseline"
    # A frozen arm is read beside its re-tuned one, among the changes; it is no headline.
    return "frozen" if arm.declared.frozen else judged(arm.against_baseline)
