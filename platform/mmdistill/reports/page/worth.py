"""The sections of the page on what an arm is worth: in labels, of the gap, on unseen rows, in trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmdistill.reports.ablation import Ablation
from mmdistill.reports.budget_curve import BudgetCurve
from mmdistill.reports.cells import number
from mmdistill.reports.exchange import LabelCurve, Worth
from mmdistill.reports.page.charts import Chart, chart
from mmdistill.reports.page.sections import (
    BASELINE,
    OURS,
    Grid,
    Part,
    Section,
    ends_of,
    grid_of,
    interval_row,
    span,
)
from mmdistill.reports.render_curves import Curves, curve_sections, share_text, worth_text
from mmdistill.statistics import Interval

_SHOWN = (1, 4, 8, 16, 32, 64, 128)


def labels(curves: Curves, ablation: Ablation) -> Section | None:
    """Return what every arm is worth in labels of the student alone; None without a label curve."""
    found = [curve for curve in curves.exchange.curves if curve.worths]
    if not found:
        return None
    charts = [_label_chart(curve, ablation.score_name, place) for place, curve in enumerate(found)]
    tables = curve_sections(curves, score_name=ablation.score_name, baseline=ablation.baseline)
    grids = [grid_of(table) for table in tables]
    lead = [
        f"{worth.arm} at {worth.fraction:.0%} of the labels = {ablation.baseline} at {worth_text(worth)}."
        for curve in found
        for worth in curve.worths
    ]
    again = ["mmdistill table STUDY", "mmdistill query STUDY @label_curve"]
    return Section("labels", "Worth in labels", [*charts, *grids], lead, again=again)


def _label_chart(curve: LabelCurve, score_name: str, place: int) -> Chart:
    alone = [
        {"of": "alone", "fraction": fraction, "fitted": fitted, **_scored(interval)}
        for fraction, fitted, interval in zip(curve.fractions, curve.fitted, curve.scores, strict=True)
    ]
    scores = [*curve.scores, *(worth.score for worth in curve.worths)]
    ends = [end for one in scores for end in (one.mean, one.low, one.high) if math.isfinite(end)]
    return chart(
        "label_curve",
        {worth.arm: [*alone, _worth_row(worth)] for worth in curve.worths},
        name=f"label curve {place}",
        label=f"{score_name} over label fractions, and the labels each arm is worth",
        caption="Grey: the student alone over its label fractions (points with 95 % intervals) and the "
        "closest curve that never falls. Blue: the arm; the arrow leads to the labels at which the student "
        "alone scores as much, the band is its 95 % interval.",
        score=score_name,
        fractions=list(curve.fractions),
        first=min([curve.fractions[0], *(worth.fraction for worth in curve.worths)]),
        last=max([curve.fractions[-1], *(worth.fraction for worth in curve.worths)]),
        low=min(ends),
        high=max(ends),
    )


def _scored(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "score_low": interval.low, "score_high": interval.high}


def _worth_row(worth: Worth) -> dict[str, Any]:
    return {
        "of": "worth",
        "fraction": worth.fraction,
        **_scored(worth.score),
        "equal": worth.equal,
        "equal_low": worth.low,
        "equal_high": worth.high,
        "angle": 0 if worth.equal >= worth.fraction else 180,
        "text": f"{worth.arm}: {worth_text(worth)}",
    }


def gaps(curves: Curves) -> Section | None:
    """Return the share of the distillable gap each arm closes, on validation rows."""
    found = curves.gap_shares
    known = {gap.arm: gap.share for gap in found if gap.share}
    if not found:
        return None
    header = ["arm", "its best teacher", "n", "teacher minus student alone", "share closed"]
    rows = [
        [
            gap.arm,
            gap.teacher,
            f"{gap.gap.n} {gap.replicate}",
            ends_of(gap.gap),
            share_text(gap.share) if gap.share else gap.reason or "",
        ]
        for gap in found
    ]
    drawn = _intervals(
        known,
        name="gap",
        x="share of the gap closed",
        tick_format=".0%",
        label="Share of the gap between student alone and teacher that each arm closes",
        caption="0 is the student alone, 100 % its best teacher, all on the validation rows of the confirmed "
        "pairs; ratio of means with Fieller's 95 % interval.",
    )
    parts: list[Part] = [*drawn, Grid("Share of the gap", header, rows, frozenset({0, 1, 4}))]
    return Section("gap", "Share of the gap closed", parts)


def optimism(curves: Curves, ablation: Ablation) -> Section | None:
    """Return how far validation flattered each arm."""
    found = {gap.arm: gap.difference for gap in curves.optimism}
    if not found:
        return None
    drawn = _intervals(
        found,
        name="optimism",
        x=f"validation minus test {ablation.score_name}",
        tick_format="+.3~f",
        label="Validation minus test score of each arm",
        caption="Above 0 validation flattered the arm: it chose the settings and the epoch. Confirmed runs, "
        "95 % interval.",
    )
    rows = [
        [gap.arm, ends_of(gap.difference), f"{gap.difference.n} {gap.replicate}"] for gap in curves.optimism
    ]
    grid = Grid("Validation minus test", ["arm", "validation minus test", "n"], rows, folded=True)
    return Section("optimism", "Did validation flatter?", [*drawn, grid])


def _intervals(
    found: Mapping[str, Interval], *, name: str, x: str, tick_format: str, label: str, caption: str
) -> list[Chart]:
    """Return one chart of intervals by name; none without any."""
    if not found:
        return []
    low, high = span(list(found.values()))
    return [
        chart(
            "intervals",
            {"": [interval_row(row, interval, name) for row, interval in found.items()]},
            name=name,
            label=label,
            caption=caption,
            x=x,
            format=tick_format,
            kinds=[name],
            legend=None,
            step=24,
            low=low,
            high=high,
        )
    ]


def budgets(curves: Curves, ablation: Ablation) -> Section | None:
    """Return what more trials of the search would have been worth."""
    found = {curve.arm: curve for curve in curves.budget}
    if not any(len(curve.points) > 1 for curve in found.values()):
        return None
    against = {arm.name: arm.declared.baseline for arm in ablation.arms}
    points = [point.score for curve in found.values() for point in curve.points]
    drawn = chart(
        "curves",
        {
            arm: _curve_rows(found.get(against[arm] or ""), BASELINE) + _curve_rows(curve, OURS)
            for arm, curve in found.items()
        },
        name="budget curves",
        label=f"Expected validation {ablation.score_name} of the best of n trials",
        caption=f"Validation {ablation.score_name} of the best of n trials drawn from the arm's own "
        "search; band: 90 % of the draws; dashed: the arm's baseline.",
        x="trials",
        scale="linear",
        curve=f"validation {ablation.score_name}",
        low=min(point.low for point in points),
        high=max(point.high for point in points),
    )
    longest = max(curve.points[-1].n for curve in found.values())
    ends = {curve.points[-1].n for curve in found.values()}
    shown = sorted(ends | {n for n in _SHOWN if n < longest})
    rows = [[arm, *(_at(curve, n) for n in shown)] for arm, curve in found.items()]
    grid = Grid(
        "Expected score of the best of n", ["arm", *(f"best of {n}" for n in shown)], rows, folded=True
    )
    return Section("budget", "Score against budget", [drawn, grid])


def _curve_rows(curve: BudgetCurve | None, of: str) -> list[dict[str, Any]]:
    points: Sequence[Any] = curve.points if curve else ()
    band = ("low", "high") if of == OURS else ()
    return [
        {"of": of, "x": point.n, "mean": point.score.mean, **{end: getattr(point.score, end) for end in band}}
        for point in points
    ]


def _at(curve: BudgetCurve, n: int) -> str:
    return number({point.n: point.score.mean for point in curve.points}.get(n)).text
