"""The sections of the page that the ablation itself answers; what it does not answer gives no section."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mmdistill.reports.ablation import Ablation, ArmSummary
from mmdistill.reports.cells import TextTable, ends
from mmdistill.reports.claims import Claim
from mmdistill.reports.columns import COLUMNS, LEFT, baselines, usual
from mmdistill.reports.page.charts import Chart, chart
from mmdistill.reports.paper import paper_notes
from mmdistill.reports.render import budget_lines, change_lines
from mmdistill.reports.standing import Standing
from mmdistill.statistics import Interval

OURS, BASELINE = "arm", "baseline"
"""Whose a row of a chart's panel is."""
_NO_VERDICT = "no verdict"
# How many times the largest difference a chart may span, lest one wide interval hides all others.
_WIDEST = 3.0


class Grid(NamedTuple):
    """A table: the fallback of a chart, or one in its own right.

    Attributes:
        label: what it holds.
        left: numbers of the columns set flush left.
        folded: whether a reader opens it first.
        marks: ``b`` or ``u`` by row and column, for the number a cell begins with.
    """

    label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})
    folded: bool = False
    marks: Mapping[tuple[int, int], str] = MappingProxyType({})
    kind: str = "grid"


class Facts(NamedTuple):
    """Names with a value each."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


Part = Chart | Grid | Facts


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        id: of its heading, for links.
        title: heading.
        parts: charts and tables in order.
        lead: paragraphs before them.
        notes: how to read it.
        again: commands that give the same numbers.
    """

    id: str
    title: str
    parts: Sequence[Part]
    lead: Sequence[str] = ()
    notes: Sequence[str] = ()
    again: Sequence[str] = ()


def grid_of(table: TextTable) -> Grid:
    """Return a table that is printed elsewhere too."""
    return Grid(table.header[0], table.header, table.lines, frozenset(table.left))


class Finding(NamedTuple):
    """One planned contrast, or another finding: its question, its answer, and the answer in a word."""

    question: str
    answer: str
    word: str
    tone: str


def verdicts(ablation: Ablation) -> list[Finding]:
    """Return the sentences of the planned contrasts, each as question and answer."""
    return [
        Finding(
            question=claim.question or "",
            answer=line.removeprefix(f"{claim.question} "),
            word=claim.verdict or ("not tested yet" if claim.seeds.n else "not known yet"),
            tone=tone(claim.verdict),
        )
        for claim, line in zip(ablation.contrasts, ablation.sentences, strict=True)
    ]


def tone(verdict: str | None) -> str:
    """Return the style of a verdict."""
    return verdict if verdict in ("helps", "harms", "equivalent") else "unknown"


def differences(ablation: Ablation) -> Section | None:
    """Return the forest plot: planned contrasts, then every arm minus its baseline, on one scale."""
    several = len(baselines(ablation)) > 1
    planned = {
        f"{claim.arm} \N{MINUS SIGN} {claim.against}": claim for claim in ablation.contrasts if claim.seeds.n
    }
    shown = [arm for arm in ablation.arms if arm.against_baseline and arm.against_baseline.seeds.n]
    arms = {
        f"{arm.name} \N{MINUS SIGN} {arm.declared.baseline}" if several else arm.name: arm.against_baseline
        for arm in shown
    }
    groups: dict[str, Mapping[str, Claim | None]] = {
        "Planned contrasts": planned,
        f"Every arm minus {_compared(ablation)}": arms,
    }
    found = {title: {k: c for k, c in claims.items() if c} for title, claims in groups.items()}
    charts = _forests(found, "differences", ablation)
    return Section("differences", "Differences", charts) if charts else None


def _compared(ablation: Ablation) -> str:
    return "its baseline" if len(baselines(ablation)) > 1 else ablation.baseline


def changes(ablation: Ablation) -> Section | None:
    """Return what each generated change does to its base, re-tuned and frozen."""
    header, lines = change_lines(ablation)
    if not lines:
        return None
    shown = [arm for arm in ablation.arms if arm.against_base and arm.against_base.seeds.n]
    claims = {_change(arm): arm.against_base for arm in shown}
    title = "Each change minus its base"
    parts: list[Part] = [*_forests({title: {k: c for k, c in claims.items() if c}}, "changes", ablation)]
    parts.append(Grid("Changes", header, lines, frozenset({0, 1, 4, len(header) - 1})))
    return Section("changes", "Changes", parts, again=["mmdistill table STUDY"])


def _change(arm: ArmSummary) -> str:
    frozen = ", frozen" if arm.declared.frozen else ""
    return f"{arm.declared.change or arm.name} ({arm.declared.base}{frozen})"


def _forests(groups: Mapping[str, Mapping[str, Claim]], name: str, ablation: Ablation) -> list[Chart]:
    """Return one forest plot with a panel per group; none without a difference."""
    claims = [claim for found in groups.values() for claim in found.values()]
    # Of one trial each, no comparison holds.
    if not claims or ablation.basis == "search":
        return []
    low, high = _span(claims, ablation.margin)
    drawn = chart(
        "forest",
        {
            title: [_forest_row(row, c) for row, c in found.items()]
            for title, found in groups.items()
            if found
        },
        name=name,
        stacked=True,
        label=f"Forest plot of differences in {ablation.score_name}",
        caption=f"Difference in {ablation.score_name}, higher is better. Thick: 95 % interval over "
        f"{ablation.scheme.replicate}; thin: over seeds and test {ablation.scheme.unit} at once. Shaded: the "
        f"margin of {ablation.margin:g}, within which a difference counts as none.",
        margin_low=-ablation.margin,
        margin_high=ablation.margin,
        low=low,
        high=high,
        verdicts=sorted({claim.verdict or _NO_VERDICT for claim in claims}),
        difference=f"difference in {ablation.score_name}",
    )
    return [drawn]


def _forest_row(name: str, claim: Claim) -> dict[str, Any]:
    seeds, crossed = claim.seeds, claim.crossed
    return {
        "row": name,
        "mean": seeds.mean,
        "low": seeds.low,
        "high": seeds.high,
        "crossed_low": crossed.low,
        "crossed_high": crossed.high,
        "verdict": claim.verdict or _NO_VERDICT,
        "text": f"{name}: {seeds.mean:+z.3f}, n = {seeds.n}",
    }


def _span(claims: Iterable[Claim], margin: float) -> tuple[float, float]:
    found = [interval for claim in claims for interval in (claim.seeds, claim.crossed)]
    low, high = span(found, least=margin)
    return min(low, -2 * margin), max(high, 2 * margin)


def span(intervals: Sequence[Interval], least: float = 0.0) -> tuple[float, float]:
    """Return the ends of a scale for some intervals and 0, cut where one of them is very wide."""
    ends = [end for one in intervals for end in (one.mean, one.low, one.high) if math.isfinite(end)]
    most = _WIDEST * max([least, *(abs(one.mean) for one in intervals if math.isfinite(one.mean))])
    return max(min([0.0, *ends]), -most), min(max([0.0, *ends]), most)


def interval_row(name: str, interval: Interval, kind: str) -> dict[str, Any]:
    """Return an interval as a row of the chart ``intervals``."""
    text = f"{name}, {kind}: {ends_of(interval)}"
    return {
        "row": name,
        "kind": kind,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "text": text,
    }


def ends_of(interval: Interval) -> str:
    """Return a signed mean with the ends of its interval, where it has one."""
    mean = f"{interval.mean:+z.3f}"
    return mean if math.isnan(interval.low) else f"{mean} {ends(interval)}"


def results(ablation: Ablation, marks: Standing) -> Section:
    """Return the ablation table; the best mean is bold, the second underlined."""
    names = usual(ablation)
    header = ["arm", *(COLUMNS[name].title(ablation) for name in names)]
    rows = [[arm.name, *(COLUMNS[name].cell(arm, ablation).text for name in names)] for arm in ablation.arms]
    left = frozenset({0, *(place for place, name in enumerate(names, start=1) if name in LEFT)})
    # What the whole study must say is beside the verdict.
    said = {*ablation.stamps, *ablation.warnings}
    notes = [f"{line}." for line in paper_notes(ablation, names, marks) if line not in said]
    place = names.index("score") + 1
    marked = {marks.best: "b", marks.second: "u"}
    tags = {(row, place): marked[arm.name] for row, arm in enumerate(ablation.arms) if arm.name in marked}
    grid = Grid(f"{ablation.score_name} of every arm", header, rows, left, marks=tags)
    return Section("table", "Table", [grid], notes=notes, again=["mmdistill table STUDY"])


def conduct(ablation: Ablation, study: Mapping[str, Any]) -> Section:
    """Return how the study was run: what each arm was given, and with what it ran.

    Args:
        ablation: of the study.
        study: its row in the table ``studies``.
    """
    header, lines = budget_lines(ablation)
    facts = [fact for name, value in study.items() for fact in _facts(name, value)]
    parts: list[Part] = [
        Grid("What every arm was given", header, lines, frozenset({0, len(header) - 1})),
        Facts(facts),
    ]
    openings = f"The test split was opened {ablation.openings} time(s)."
    again = ["mmdistill table STUDY", 'mmdistill query STUDY "SELECT * FROM studies" --json']
    return Section("conduct", "How it was run", parts, [openings], again=again)


# Shown elsewhere on the page, and longer than a line.
_NO_FACTS = ("contrasts_json", "arms_json")


def _facts(name: str, value: Any) -> list[tuple[str, str]]:
    """Return a column of the study as names and values; an object in JSON as one line."""
    if value in (None, "") or name in _NO_FACTS:
        return []
    words = name.removesuffix("_json").replace("_", " ")
    if name.endswith("_json"):
        found = json.loads(value)
        parts = [f"{key} {_text(one)}" for key, one in found.items() if one not in (None, "", [])]
        return [(words, ", ".join(parts))] if parts else []
    return [(words, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
