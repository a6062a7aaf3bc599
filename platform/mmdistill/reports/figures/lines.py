"""Lines with bands, one per arm: together while they can be told apart, else each beside the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdistill.reports.figures.style import COLOURS, DASHES, GREY, panels, shown

# More lines than this in one panel hide each other.
_TOGETHER = 4


class Line(NamedTuple):
    """A line with its band.

    Axes: X points.
    """

    x_X: Sequence[float]
    mean_X: npt.ArrayLike
    low_X: npt.ArrayLike
    high_X: npt.ArrayLike


def lines_of_arms(by_arm: Mapping[str, Line], baseline: str, *, x: str, y: str) -> Figure:
    """Return the lines in one panel, or in a panel each with the baseline's dashed in all of them."""
    if len(by_arm) <= _TOGETHER:
        return _together(by_arm, x, y)
    arms = {arm: line for arm, line in by_arm.items() if arm != baseline}
    figure, places = panels(len(arms))
    for axes, (arm, line) in zip(places, arms.items(), strict=True):
        if baseline in by_arm:
            _draw(axes, by_arm[baseline], GREY, "--", None)
        _draw(axes, line, COLOURS[0], "-", None)
        axes.set_title(shown(arm, 27))
    figure.supxlabel(f"{x} (dashed: {shown(baseline)})" if baseline in by_arm else x, fontsize=7)
    figure.supylabel(y, fontsize=7)
    return figure


def _together(by_arm: Mapping[str, Line], x: str, y: str) -> Figure:
    figure, (axes,) = panels(1)
    for place, (arm, line) in enumerate(by_arm.items()):
        _draw(axes, line, COLOURS[place], DASHES[place % len(DASHES)], shown(arm, 27))
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw(axes: Axes, line: Line, colour: str, dash: Any, label: str | None) -> None:
    low_X, mean_X, high_X = (np.asarray(values) for values in (line.low_X, line.mean_X, line.high_X))
    axes.fill_between(line.x_X, low_X, high_X, color=colour, alpha=0.2, linewidth=0)
    axes.plot(line.x_X, mean_X, color=colour, linestyle=dash, label=label)
