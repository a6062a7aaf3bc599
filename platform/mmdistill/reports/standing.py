"""Which arm may be printed bold, and which underlined."""

from collections.abc import Collection
from typing import NamedTuple

from mmdistill.reports.readings import Readings


class Standing(NamedTuple):
    """The marks of one column of scores.

    Attributes:
        best: the arm with the highest mean, bold; None where the data do not support that it is the best.
        second: the arm with the second highest mean; that claims no more than the means do. None where fewer
            than two arms have a score.
    """

    best: str | None
    second: str | None

    @property
    def underlined(self) -> str | None:
        """Return the second arm where the best is bold; a line under one mean alone would crown it."""
        return self.second if self.best else None


def standing(readings: Readings, among: Collection[str] | None = None) -> Standing:
    """Return which arm is best and which second.

    The highest mean is the best one only if its crossed interval (95 %, seeds x test units) against *every*
    other arm lies above 0. All of them must, so their number needs no correction (an intersection-union test;
    Berger, 1982). Before the test split was opened there are no such intervals, and no best. Frozen arms are
    left out: their reading is biased towards the arm whose settings they take.

    Args:
        readings: of the study.
        among: the arms to compare, e.g. those of one label fraction; all by default.
    """
    means = {
        arm.name: readings.score(arm.name).mean
        for arm in readings.declared
        if arm.name in readings.arms and not arm.frozen and (among is None or arm.name in among)
    }
    order = sorted(means, key=means.__getitem__, reverse=True)
    if len(order) < 2:
        return Standing(None, None)
    first, *others = order
    is_best = all(readings.compare(first, other).crossed.low > 0 for other in others)
    return Standing(first if is_best else None, others[0])
