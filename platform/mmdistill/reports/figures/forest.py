"""Forest plot: every difference with both intervals, against the margin."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmdistill.reports.cells import judged
from mmdistill.reports.claims import Claim
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import GREY, MARKERS, PAGE, VERDICTS, new_figure, shown


@FIGURES.register("forest")
def forest(sources: Sources) -> Mapping[str, Figure]:
    """Differences with their intervals over seeds and over seeds x units, against the margin."""
    ablation = sources.ablation
    planned = [claim for claim in ablation.contrasts if claim.seeds.n]
    names = {arm.name for arm in sources.arms}
    if sources.names:
        planned = [claim for claim in planned if {claim.arm, claim.against} & names]
    asked = {(claim.arm, claim.against) for claim in planned}
    others = [
        claim
        for claim in (arm.against_baseline for arm in sources.arms)
        if claim is not None and claim.seeds.n and (claim.arm, claim.against) not in asked
    ]
    if not planned and not others:
        raise NothingToDrawError("no two arms share a finished pair yet", "go on with `mmdistill run`")
    if ablation.basis == "search":
        raise NothingToDrawError("of one trial each, no comparison holds", "go on with `mmdistill run`")
    figure = new_figure(PAGE, 0.9 + 0.2 * (len(planned) + len(others)))
    axes = figure.subplots()
    lines: list[tuple[float, Claim]] = [(-float(n), claim) for n, claim in enumerate(planned)]
    # A gap between what was planned and what is only looked at.
    start = len(planned) + 0.6 * bool(planned)
    lines += [(-start - n, claim) for n, claim in enumerate(others)]
    for y, claim in lines:
        _line(axes, y, claim)
    _frame(axes, lines, ablation.margin, ablation.score_name)
    if planned and others:
        axes.axhline(-start + 0.8, color=GREY, linewidth=0.4)
    is_judged = all(claim.verdict for _, claim in lines)
    _legend(figure, ablation.scheme.replicate, ablation.scheme.unit, is_judged=is_judged)
    return {"": figure}


def _line(axes: Axes, y: float, claim: Claim) -> None:
    colour = VERDICTS[claim.verdict]
    for interval, width in ((claim.crossed, 1.0), (claim.seeds, 3.0)):
        if not np.isnan(interval.low):
            axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=width, zorder=2)
    face = colour if claim.question else "white"
    axes.plot(
        claim.seeds.mean,
        y,
        MARKERS[claim.verdict],
        markersize=5.5 if claim.verdict else 4.5,
        markerfacecolor=face,
        markeredgecolor=colour,
        zorder=3,
    )


def _frame(axes: Axes, lines: Sequence[tuple[float, Claim]], margin: float, score: str) -> None:
    axes.axvspan(-margin, margin, color="#000000", alpha=0.08, linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=0.6, zorder=1)
    ys = [y for y, _ in lines]
    labels = [f"{shown(claim.arm)} \u2212 {shown(claim.against)}" for _, claim in lines]
    axes.set_yticks(ys, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(min(ys) - 0.7, max(ys) + 0.7)
    axes.set_xlabel(f"difference in {score}")
    right = axes.secondary_yaxis("right")
    right.set_yticks(ys, [_answer(claim) for _, claim in lines])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _answer(claim: Claim) -> str:
    # A hyphen is narrower than a plus, and the verdicts would not stand below each other.
    return f"{claim.seeds.mean:+z.3f}".replace("-", "\u2212") + f"   {judged(claim)}"


def _legend(figure: Figure, replicate: str, unit: str, *, is_judged: bool) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=GREY, linewidth=3, label=f"95 % over {replicate}"),
        Line2D([], [], color=GREY, linewidth=1, label=f"95 % over seeds x {unit}"),
        Patch(color="#000000", alpha=0.08, linewidth=0, label="within the margin"),
        Line2D([], [], color=GREY, marker="o", linestyle="", label="planned"),
        Line2D(
            [], [], color=GREY, marker="o", linestyle="", markerfacecolor="white", label="exploratory (*)"
        ),
    ]
    if not is_judged:
        handles.append(Line2D([], [], color=GREY, marker=MARKERS[None], linestyle="", label="not judged"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
