"""Score against budget: what the best of n search trials is worth."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from mmdistill.reports.budget_curve import budget_curves
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.lines import Line, lines_of_arms


@FIGURES.register("budget")
def budget(sources: Sources) -> Mapping[str, Figure]:
    """Expected validation score of the best of n search trials, with the band of 90 % of the draws."""
    shown = {arm.name for arm in sources.arms}
    lines = {
        curve.arm: Line(
            [point.n for point in curve.points],
            [point.score.mean for point in curve.points],
            [point.score.low for point in curve.points],
            [point.score.high for point in curve.points],
        )
        for curve in budget_curves(sources.readings)
        if curve.arm in shown
    }
    if not lines:
        raise NothingToDrawError("no search has a complete trial", "go on with `mmdistill run`")
    score = f"validation {sources.ablation.score_name}, best of n"
    return {"": lines_of_arms(lines, sources.ablation.baseline, x="n search trials", y=score)}
