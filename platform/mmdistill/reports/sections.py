"""The sections of the page that the ablation itself answers; what it does not answer gives no section."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmdistill.reports.ablation import Ablation
from mmdistill.reports.charts import Chart, chart
from mmdistill.reports.claims import Claim
from mmdistill.reports.columns import COLUMNS, LEFT, baselines, usual
from mmdistill.reports.render import budget_lines, change_lines, footnotes

_NO_VERDICT = "no verdict"
# How many times the largest difference a chart may span, lest one wide interval hides all others.
_WIDEST = 3.0


class Grid(NamedTuple):
    """A table: the fallback of a chart, or one in its own right.

    Attributes:
        label: what it holds.
        left: numbers of the columns set flush left.
        folded: whether a reader opens it first.
    """

    label: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})
    folded: bool = False
    kind: str = "grid"


class Facts(NamedTuple):
    """Names with a value each."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


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
    parts: Sequence[Chart | Grid | Facts]
    lead: Sequence[str] = ()
    notes: Sequence[str] = ()
    again: Sequence[str] = ()


class Verdict(NamedTuple):
    """One planned contrast, or another finding: its question, its answer, and the answer in a word."""

    question: str
    answer: str
    word: str
    tone: str


def verdicts(ablation: Ablation) -> list[Verdict]:
    """Return the sentences of the planned contrasts, each as question and answer."""
    return [
        Verdict(
            question=claim.question or "",
            answer=line.removeprefix(f"{claim.question} "),
            word=claim.verdict or ("not tested yet" if claim.seeds.n else "not known yet"),
            tone=_tone(claim.verdict),
        )
        for claim, line in zip(ablation.contrasts, ablation.sentences, strict=True)
    ]


def _tone(verdict: str | None) -> str:
    return verdict if verdict in ("helps", "harms", "equivalent") else "unknown"


def differences(ablation: Ablation) -> Section | None:
    """Return the forest plot: planned contrasts, then every arm minus its baseline, on one scale."""
    several = len(baselines(ablation)) > 1
    planned = {f"{claim.arm} − {claim.against}": claim for claim in ablation.contrasts if claim.seeds.n}
    shown = [arm for arm in ablation.arms if arm.against_baseline and arm.against_baseline.seeds.n]
    arms = {
        f"{arm.name} − {arm.declared.baseline}" if several else arm.name: arm.against_baseline for arm in shown
    }
    groups = {"Planned contrasts": planned, f"Every arm minus {_compared(ablation)}": arms}
    found = {title: {k: c for k, c in claims.items() if c} for title, claims in groups.items()}
    charts = _forests({title: claims for title, claims in found.items() if claims}, ablation)
    return Section("differences", "Differences", charts) if charts else None


def _compared(ablation: Ablation) -> str:
    return "its baseline" if len(baselines(ablation)) > 1 else ablation.baseline


def changes(ablation: Ablation) -> Section | None:
    """Return what each generated change does to its base, re-tuned and frozen."""
    header, lines = change_lines(ablation)
    if not lines:
        return None
    claims = {
        f"{arm.declared.change or arm.name} ({arm.declared.base}{', frozen' * (arm.declared.frozen is not None)})": (
            arm.against_base
        )
        for arm in ablation.arms
        if arm.against_base and arm.against_base.seeds.n
    }
    title = "Each change minus its base"
    parts: list[Chart | Grid] = [*_forests({title: {k: c for k, c in claims.items() if c}}, ablation)]
    parts.append(Grid("Changes", header, lines, frozenset({0, 1, 4, len(header) - 1})))
    return Section("changes", "Changes", parts, again=["mmdistill table STUDY"])


def _forests(groups: Mapping[str, Mapping[str, Claim]], ablation: Ablation) -> list[Chart]:
    claims = [claim for found in groups.values() for claim in found.values()]
    low, high = _span(claims, ablation.margin)
    present = {claim.verdict or _NO_VERDICT for claim in claims}
    unit = ablation.scheme.unit
    return [
        chart(
            "forest",
            {title: [_forest_row(name, claim) for name, claim in found.items()]},
            name=f"forest: {title}",
            label=f"Forest plot of differences in {ablation.score_name}",
            caption=f"Difference in {ablation.score_name}, higher is better. Thick: 95 % interval over "
            f"{ablation.scheme.replicate}; thin: over seeds and test {unit} at once. Shaded: margin of "
            f"{ablation.margin:g}, within which a difference counts as none.",
            margin_low=-ablation.margin,
            margin_high=ablation.margin,
            low=low,
            high=high,
            verdicts=sorted(present),
            difference=f"difference in {ablation.score_name}",
        )
        for title, found in groups.items()
        if found
    ]


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
    found = list(claims)
    ends = [end for c in found for i in (c.seeds, c.crossed) for end in (i.mean, i.low, i.high)]
    known = [end for end in ends if math.isfinite(end)]
    most = _WIDEST * max([margin, *(abs(claim.seeds.mean) for claim in found)])
    low, high = min([-2 * margin, *known]), max([2 * margin, *known])
    return max(low, -most), min(high, most)


def results(ablation: Ablation) -> Section:
    """Return the ablation table."""
    names = usual(ablation)
    header = ["arm", *(COLUMNS[name].title(ablation) for name in names)]
    rows = [[arm.name, *(COLUMNS[name].cell(arm, ablation).text for name in names)] for arm in ablation.arms]
    left = frozenset({0, *(place for place, name in enumerate(names, start=1) if name in LEFT)})
    notes = [f"{line}." for line in footnotes(ablation)]
    grid = Grid(f"{ablation.score_name} of every arm", header, rows, left)
    return Section("table", "Table", [grid], notes=notes, again=["mmdistill table STUDY"])


def conduct(ablation: Ablation, study: Mapping[str, Any]) -> Section:
    """Return how the study was run: what each arm was given, and with what it ran.

    Args:
        study: its row in the table ``studies``.
    """
    header, lines = budget_lines(ablation)
    facts = [(name.replace("_", " "), _text(value)) for name, value in study.items() if _is_fact(name, value)]
    parts = [Grid("What every arm was given", header, lines, frozenset({0, len(header) - 1})), Facts(facts)]
    openings = f"The test split was opened {ablation.openings} time(s)."
    again = ["mmdistill table STUDY", 'mmdistill query STUDY "SELECT * FROM studies" --json']
    return Section("conduct", "How it was run", parts, [openings], again=again)


def _is_fact(name: str, value: Any) -> bool:
    return value is not None and value != "" and not name.endswith("_json")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
