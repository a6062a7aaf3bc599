"""Label efficiency: the student alone over label fractions, and how many labels each arm is worth."""

import itertools
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mmdistill.reports.ablation import ArmSummary
from mmdistill.reports.exchange import LabelCurve, Worth, exchange, labels_of
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import COLOURS, GREY, PAGE, new_figure, shown
from mmdistill.statistics import Interval

_MARKERS = "sDv^<>P*"


@FIGURES.register("labels")
def labels(sources: Sources) -> Mapping[str, Figure]:
    """Score over the share of labels; arrows lead to the share at which the student alone scores the same."""
    found = exchange(sources.readings, labels_of(sources.tables["trials"]))
    if found.reason is not None:
        raise NothingToDrawError("the study has no label curve", found.reason)
    figures = {}
    for number, curve in enumerate(found.curves, 1):
        figures["" if len(found.curves) == 1 else str(number)] = _figure(sources, curve)
    return figures


def _figure(sources: Sources, curve: LabelCurve) -> Figure:
    figure = new_figure(PAGE, 3.0)
    axes = figure.subplots()
    _points(axes, curve.fractions, curve.scores, GREY, "o", shown(sources.ablation.baseline))
    axes.plot(curve.fractions, curve.fitted, color=GREY, linewidth=0.9, label="fitted, never falling")
    names = {arm.name for arm in sources.arms}
    drawn = [worth for worth in curve.worths if worth.arm in names]
    families = _families(sources.arms, drawn)
    fractions = sorted({*curve.fractions, *(worth.fraction for worth in drawn)})
    for place, (family, worths) in enumerate(families.items()):
        # Beyond eight, a colour comes back with another marker.
        colour, marker = COLOURS[place % 8], _MARKERS[(place + place // 8) % 8]
        aside = _aside(place, len(families), fractions)
        places = [worth.fraction * aside for worth in worths]
        _points(axes, places, [worth.score for worth in worths], colour, marker, shown(family))
        for worth, start in zip(worths, places, strict=True):
            _arrow(axes, worth, start, colour)
    _frame(axes, fractions, sources.ablation.score_name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    _sentences(axes, drawn, shown(sources.ablation.baseline))
    # The legend above, a line per arm below.
    figure.set_figheight(max(3.0, 1.0 + 0.16 * len(families) + 0.125 * len(drawn)))
    return figure


def _families(arms: Sequence[ArmSummary], worths: Sequence[Worth]) -> dict[str, list[Worth]]:
    """Return the arms that differ in their share of the labels alone, by the arm they were made from."""
    bases = {arm.name: arm.declared.base for arm in arms if _is_along(arm.declared.change)}
    families: dict[str, list[Worth]] = {}
    for worth in worths:
        families.setdefault(bases.get(worth.arm) or worth.arm, []).append(worth)
    return families


def _is_along(change: str | None) -> bool:
    return change is not None and change.startswith("data.label_fraction = ") and "," not in change


def _aside(place: int, families: int, fractions: Sequence[float]) -> float:
    """Return what a share is multiplied by, so that the arms of one share stand side by side.

    The student alone stands in the middle, the others to its right and left in turn, over at most two fifths
    of the way to the next share.
    """
    nearest = min((b / a for a, b in itertools.pairwise(fractions)), default=2.0)
    step = min(0.04, 0.4 * math.log(nearest) / (families + 1))
    return math.exp(step * (place // 2 + 1) * (-1) ** place)


def _points(
    axes: Axes,
    fractions: Sequence[float],
    scores: Sequence[Interval],
    colour: str,
    marker: str,
    label: str,
) -> None:
    ends = [[s.mean - s.low for s in scores], [s.high - s.mean for s in scores]]
    means = [score.mean for score in scores]
    axes.errorbar(
        fractions, means, ends, fmt=marker, color=colour, capsize=2, elinewidth=0.8, label=label, zorder=3
    )


def _arrow(axes: Axes, worth: Worth, start: float, colour: str) -> None:
    """Draw from an arm to where the student alone scores the same, with the interval of that share."""
    y = worth.score.mean
    axes.plot([worth.low, worth.high], [y, y], color=colour, linewidth=4, alpha=0.2, solid_capstyle="butt")
    if worth.equal != worth.fraction:
        axes.annotate(
            "",
            (worth.equal, y),
            (start, y),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.9, "shrinkB": 0},
        )


def _sentences(axes: Axes, worths: Sequence[Worth], alone: str) -> None:
    """Write beside the axes what the arrows say, with the interval of each share."""
    lines = [f"share of the labels that {alone} needs", "for the same score (95 % over pairs):"]
    for worth in sorted(worths, key=lambda worth: (worth.arm, worth.fraction)):
        sign = {"below": "< ", "inside": "", "above": "> "}[worth.side]
        low, high = (f"{100 * end:.0f}" for end in (worth.low, worth.high))
        ends = f"{'< ' if worth.open_low else ''}{low} to {'> ' if worth.open_high else ''}{high}"
        lines.append(f"{shown(worth.arm, 30)}: {sign}{100 * worth.equal:.0f} % ({ends})")
    axes.text(1.04, 0.0, "\n".join(lines), transform=axes.transAxes, fontsize=6.5, va="bottom")


def _frame(axes: Axes, fractions: Sequence[float], score: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(fractions)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:g} %"))
    axes.set(xlabel="labels (logarithmic; arms of one share side by side)", ylabel=score)
