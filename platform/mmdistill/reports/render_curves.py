"""The label exchange rate, the share of the gap closed and the optimism gap as text."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from mmdistill.reports.ablation import Ablation
from mmdistill.reports.budget_curve import BudgetCurve, budget_curves
from mmdistill.reports.cells import NOTHING, TextTable, ends, score
from mmdistill.reports.exchange import Exchange, LabelCurve, Worth, exchange, labels_of
from mmdistill.reports.gap import GapShare, Optimism, gap_shares, optimism_gaps
from mmdistill.reports.readings import Readings
from mmdistill.reports.render import markdown
from mmdistill.statistics import Interval


class Curves(NamedTuple):
    """What a study says beside its ablation table; empty where it cannot answer."""

    exchange: Exchange
    gap_shares: tuple[GapShare, ...]
    optimism: tuple[Optimism, ...]
    budget: tuple[BudgetCurve, ...]


def curves_of(readings: Readings, tables: Mapping[str, pa.Table]) -> Curves:
    """Return all of it, from the tables of a study and what was read from them."""
    return Curves(
        exchange=exchange(readings, labels_of(tables["trials"])),
        gap_shares=gap_shares(readings, tables["stages"]),
        optimism=optimism_gaps(readings),
        budget=budget_curves(readings),
    )


def with_curves(ablation: Ablation, curves: Curves | None) -> str:
    """Return the whole table as Markdown; None of a metric beside the score, which has no curves."""
    if curves is None:
        return markdown(ablation)
    sections = curve_sections(curves, score_name=ablation.score_name, baseline=ablation.baseline)
    return markdown(ablation, sections=sections, notes=curve_notes(curves))


def curve_sections(curves: Curves, *, score_name: str, baseline: str) -> list[TextTable]:
    """Return one table per label curve: what each arm is worth in labels of the student alone."""
    shares = {found.arm: found.share for found in curves.gap_shares}
    header = ["label curve", "n", "labels", score_name, f"= {baseline} at"]
    header += ["times its labels", "share of teacher gap"]
    return [TextTable(header, _worths(curve, shares), {0}) for curve in curves.exchange.curves]


def _worths(curve: LabelCurve, shares: Mapping[str, Interval | None]) -> list[list[str]]:
    lines = [
        [arm, str(interval.n), f"{fraction:.0%}", score(interval).text, "itself", NOTHING, NOTHING]
        for arm, fraction, interval in zip(curve.arms, curve.fractions, curve.scores, strict=True)
    ]
    return lines + [
        [
            worth.arm,
            str(worth.n),
            f"{worth.fraction:.0%}",
            score(worth.score).text,
            worth_text(worth),
            _times(worth),
            share_text(shares.get(worth.arm)),
        ]
        for worth in curve.worths
    ]


_SIGNS = {"below": "<=", "inside": "", "above": ">="}


def worth_text(worth: Worth) -> str:
    """Return e.g. ``43% [38%, >=100%]``; >= and <= stand at the ends of what was measured."""
    low = _end(worth.low, below=worth.open_low, above=worth.low == worth.equal and worth.side == "above")
    high = _end(worth.high, below=worth.high == worth.equal and worth.side == "below", above=worth.open_high)
    return f"{_SIGNS[worth.side]}{worth.equal:.0%} [{low}, {high}]"


def _end(value: float, *, below: bool, above: bool) -> str:
    return f"{'<=' if below else '>=' if above else ''}{value:.0%}"


def _times(worth: Worth) -> str:
    return f"{_SIGNS[worth.side]}{worth.equal / worth.fraction:.1f}"


def share_text(share: Interval | None) -> str:
    """Return a share of the gap with its interval; ``-`` where there is none."""
    return NOTHING if share is None else f"{share.mean:z.2f} [{share.low:z.2f}, {share.high:z.2f}]"


def curve_notes(curves: Curves) -> list[str]:
    """Return the footnotes: how to read the label curve, and one line on gaps to validation and teacher."""
    notes = []
    if curves.exchange.curves:
        notes.append(
            "Label curve: the share of the labels at which the student alone reaches an arm's mean, on the "
            "closest curve that never falls through its measured shares, straight in log(share); [ ] holds "
            "every share at which arm and curve do not differ (95 %, t over what n counts). <= and >= are "
            "the ends of what was measured: nothing is extrapolated"
        )
    gaps = [text for text in (_optimism(curves), _closed(curves)) if text]
    return [*notes, *(["; ".join(gaps)] if gaps else []), *_without_share(curves)]


def _without_share(curves: Curves) -> list[str]:
    arms = [gap.arm for gap in curves.gap_shares if gap.share is None]
    if not arms:
        return []
    return [
        "No share of the gap where the 95 % interval of teacher minus student alone includes 0 or is wider "
        f"than that difference: {', '.join(arms)}"
    ]


def _optimism(curves: Curves) -> str:
    if not curves.optimism:
        return ""
    worst = max(curves.optimism, key=lambda found: found.difference.mean)
    found = f"{worst.difference.mean:+z.3f} {ends(worst.difference)}"
    whose = f"{worst.arm}, n = {worst.difference.n} {worst.replicate}"
    return f"Validation minus test score, largest of all arms: {found} ({whose})"


def _closed(curves: Curves) -> str:
    found = [(share.share, share) for share in curves.gap_shares if share.share is not None]
    if not found:
        return ""
    most, whose = max(found, key=lambda pair: pair[0].mean)
    return (
        f"largest share closed of the gap from {whose.against} to the teacher: {share_text(most)} "
        f"({whose.arm}, n = {most.n} {whose.replicate}), on validation, where alone teachers are scored"
    )
