"""The sections of the page on single teachers and modalities, and on what an arm does to single rows."""

from collections.abc import Sequence

from mmdistill.reports.ablation import Ablation
from mmdistill.reports.contributions import Lattice, Part, finding, told
from mmdistill.reports.harm import HarmSet
from mmdistill.reports.page.charts import Chart, chart
from mmdistill.reports.page.sections import Facts, Finding, Grid, Section, grid_of, interval_row, span, tone
from mmdistill.reports.render_contributions import HARM_NOTE, contribution_notes, harm_table, lattice_tables

_MEASURES = {"alone": "add_one", "in company": "leave_one_out", "Shapley value": "shapley"}
_KINDS = {"privileged": "modality", "teachers": "teacher"}


def named(ablation: Ablation) -> list[Finding]:
    """Return the teachers and modalities that were found to help, to harm or to be useless."""
    several = len(ablation.lattices) > 1
    return [
        _finding(part, text, lattice, several=several)
        for lattice in ablation.lattices
        for part, text in told(lattice)
        if _is_named(part, lattice)
    ]


def _is_named(part: Part, lattice: Lattice) -> bool:
    # A frozen reading is biased towards the arm whose settings it takes: it is no headline.
    return lattice.frozen is None and finding(part) != "undecided"


def _finding(part: Part, text: str, lattice: Lattice, *, several: bool) -> Finding:
    said, _, numbers = text.removeprefix(part.name).partition(": ")
    where = f" in {lattice.full}" if several else ""
    question = f"{_KINDS[lattice.kind].capitalize()} {part.name}{where}{said}"
    word = finding(part)
    return Finding(question, numbers[:1].upper() + numbers[1:], word, tone(_TONES.get(word)))


_TONES = {"helps": "helps", "harms": "harms", "useless": "equivalent"}


def contributions(ablation: Ablation) -> Section | None:
    """Return what each teacher or modality gives alone, in company and on average; None without a lattice."""
    if not ablation.lattices:
        return None
    charts = [part for place, one in enumerate(ablation.lattices) for part in _chart(one, ablation, place)]
    tables = [table for lattice in ablation.lattices for table in _tables(lattice)]
    lead = [
        text for lattice in ablation.lattices for part, text in told(lattice) if not _is_named(part, lattice)
    ]
    notes = [f"{note}." for note in contribution_notes(ablation) if note != HARM_NOTE]
    kinds = " and ".join(dict.fromkeys(_KINDS[lattice.kind] for lattice in ablation.lattices))
    again = ["mmdistill table STUDY"]
    return Section("contributions", f"What each {kinds} gives", [*charts, *tables], lead, notes, again)


def _tables(lattice: Lattice) -> list[Grid]:
    first, *others = (grid_of(table) for table in lattice_tables(lattice))
    # There is room for the whole name here.
    title = f"{_KINDS[lattice.kind]} of {lattice.full}"
    return [first._replace(label=title, header=[title, *first.header[1:]]), *others]


def _chart(lattice: Lattice, ablation: Ablation, place: int) -> list[Chart]:
    effects = [
        (part.name, kind, getattr(part, field).claim)
        for part in lattice.parts
        for kind, field in _MEASURES.items()
    ]
    rows = [interval_row(name, claim.seeds, kind) for name, kind, claim in effects if claim]
    if not rows:
        return []
    low, high = span([claim.seeds for _, _, claim in effects if claim])
    drawn = chart(
        "intervals",
        {"": rows},
        name=f"contributions {place}",
        label=f"Contributions of each {_KINDS[lattice.kind]} of {lattice.full} to {ablation.score_name}",
        caption=f"Gain in {ablation.score_name} by each {_KINDS[lattice.kind]} of {lattice.full}, with its "
        f"95 % interval over {ablation.scheme.replicate}.",
        x=f"gain in {ablation.score_name}",
        format="+.3~f",
        kinds=list(dict.fromkeys(row["kind"] for row in rows)),
        legend={},
        step=16,
        low=low,
        high=high,
    )
    return [drawn]


def harm(ablation: Ablation) -> Section | None:
    """Return how many rows each arm turns from right to wrong whatever the seed, and back."""
    if not ablation.harm:
        return None
    parts: list[Grid | Chart | Facts] = [*_harm_chart(ablation.harm), grid_of(harm_table(ablation.harm))]
    again = ["mmdistill table STUDY --json"]
    return Section("harm", "Harm set", parts, notes=[f"{HARM_NOTE}."], again=again)


def _harm_chart(sets: Sequence[HarmSet]) -> list[Chart]:
    """Return the bars of all arms; none where no row turns."""
    if not any(one.harmed.rows or one.rescued.rows for one in sets):
        return []
    most = max(max(one.harmed.rows, one.rescued.rows, one.expected) for one in sets)
    rows = [
        {"arm": one.arm, "kind": kind, "rows": sign * turned.rows, "chance": sign * one.expected}
        for one in sets
        for kind, sign, turned in (("to wrong", -1, one.harmed), ("to right", 1, one.rescued))
    ]
    drawn = chart(
        "harm",
        {"": rows},
        label="Rows each arm turns from right to wrong, and from wrong to right",
        caption="Test rows that change against the arm's baseline in at least 80 % of the pairs. Ticks: how "
        "many would by chance.",
        low=-most,
        high=most,
    )
    return [drawn]
