"""The contributions of teachers and modalities, what they cost, and the harm sets as tables of text."""

from collections.abc import Sequence

from mmdistill.reports.ablation import Ablation
from mmdistill.reports.cells import NOTHING, TextTable, difference, judged
from mmdistill.reports.columns import shortened
from mmdistill.reports.contributions import Effect, Lattice, Part, finding, told
from mmdistill.reports.harm import HarmSet, Slice
from mmdistill.reports.prices import GainPerCost, Measure, PriceList
from mmdistill.statistics import Verdict

HARM_NOTE = (
    "Harm set: rows that are right without a teacher and wrong with it in at least 80 % of the pairs "
    "(to right: the other way round; in regression: the absolute error grew, fell); classes and "
    "groups whose mean error grew or fell in as many. By chance: expected in each direction if the "
    "names of the two arms were drawn at random in every pair"
)
# Three differences with their verdicts leave so much of a line.
_WIDEST_NAME, _WIDEST_REASON = 19, 40
_KINDS = {"privileged": "modality", "teachers": "teacher"}
_MEASURES: dict[Measure, str] = {
    "shapley": "Shapley value",
    "leave_one_out": "in company",
    "add_one": "alone",
}
_TOGETHER: dict[Verdict | None, str] = {
    "helps": "more together",
    "harms": "less together",
    "equivalent": "independent",
}
_AVERAGED = {"all": "in every company", "alone": "without the others", "in company": "beside all others"}


def contribution_sentences(ablation: Ablation) -> list[str]:
    """Return which teachers and modalities help, harm or are useless, alone and in company."""
    several = len(ablation.lattices) > 1
    return [
        f"{lattice.full}: {text}" if several else text
        for lattice in ablation.lattices
        if lattice.frozen is None
        for part, text in told(lattice)
        if finding(part) != "undecided"
    ]


def contribution_sections(ablation: Ablation) -> list[TextTable]:
    """Return the tables of each lattice, then one of the arms in them that turn a row; none without."""
    found = [table for lattice in ablation.lattices for table in lattice_tables(lattice)]
    sets = [one for one in _harm_sets(ablation) if one.harmed.rows or one.rescued.rows]
    return [*found, harm_table(sets)] if sets else found


def _harm_sets(ablation: Ablation) -> list[HarmSet]:
    arms = {cell.arm for lattice in ablation.lattices for cell in lattice.cells}
    return [one for one in ablation.harm if one.arm in arms]


def lattice_tables(lattice: Lattice) -> list[TextTable]:
    """Return what its parts contribute, alone, in company and together, and for what price, if stated."""
    found = [_parts(lattice)]
    if any(pair.effect.claim for pair in lattice.interactions):
        found.append(_interactions(lattice))
    return [*found, _prices(lattice.prices)] if lattice.prices and lattice.prices.prices else found


def _parts(lattice: Lattice) -> TextTable:
    beside = f" beside {'+'.join(lattice.beside)}" if lattice.beside else ""
    frozen = ", frozen" if lattice.frozen else ""
    title = f"{_KINDS[lattice.kind]} of {lattice.full}{beside}{frozen}"
    names = shortened([title, *(part.name for part in lattice.parts)], _WIDEST_NAME)
    none = shortened([lattice.none])[lattice.none] if lattice.none else "none"
    titles: dict[Measure, str] = {
        "add_one": f"alone, minus {none}",
        "leave_one_out": "in company, all minus the rest",
        "shapley": "Shapley value",
    }
    shown = [measure for measure in titles if _is_known(lattice.parts, measure)]
    header = [names[title], *(text for measure in shown for text in (titles[measure], "verdict"))]
    lines = [
        [names[part.name], *(text for measure in shown for text in _effect(getattr(part, measure)))]
        for part in lattice.parts
    ]
    if "add_one" in shown:
        rest = [NOTHING] * (2 * len(shown) - 2)
        lines.append(["all together", *_effect(lattice.whole), *rest])
    return TextTable(header, lines, {0, *range(2, len(header), 2)})


def _is_known(parts: Sequence[Part], measure: Measure) -> bool:
    return any(getattr(part, measure).claim for part in parts)


def _effect(effect: Effect) -> list[str]:
    if effect.claim is None:
        reason = effect.reason or NOTHING
        return [shortened([reason], _WIDEST_REASON)[reason], NOTHING]
    return [difference(effect.claim, crossed=True).text, judged(effect.claim)]


def _interactions(lattice: Lattice) -> TextTable:
    header = [f"two of {lattice.full} together", "averaged", "beyond the sum of each", "verdict"]
    lines = []
    for found in lattice.interactions:
        claim = found.effect.claim
        value, verdict = _effect(found.effect)
        word = f"{_TOGETHER[claim.verdict]} *" if claim and claim.verdict in _TOGETHER else verdict
        lines.append([" and ".join(found.parts), _AVERAGED[found.averaged], value, word])
    return TextTable(header, lines, {0, 1, 3})


def _prices(prices: PriceList) -> TextTable:
    unit = prices.unit or "unit of cost"
    gain = _MEASURES[prices.measure] if prices.measure else ""
    header = ["price list", f"cost ({unit})", f"gain per {unit} ({gain})", "verdict on the gain"]
    lines = [
        [price.part, f"{price.cost:g}", _per_cost(price), judged(price.claim)] for price in prices.prices
    ]
    return TextTable(
        header, [*lines, *([part, NOTHING, NOTHING, NOTHING] for part in prices.unpriced)], {0, 3}
    )


def _per_cost(price: GainPerCost) -> str:
    brackets = [f"[{one.low:.2g}, {one.high:.2g}]" for one in (price.seeds, price.crossed)]
    return " ".join([f"{price.seeds.mean:+.2g}", *(text.replace("nan, nan", NOTHING) for text in brackets)])


def harm_table(sets: Sequence[HarmSet]) -> TextTable:
    """Return how many rows, classes and groups turned, one line per harm set."""
    header = ["harm set", "against", "rows to wrong", "rows to right", "by chance", "of rows"]
    header += ["classes worse, better (by chance)"] if any(one.classes for one in sets) else []
    header += ["groups worse, better (by chance)"] if any(one.groups for one in sets) else []
    names = shortened([*(one.arm for one in sets), *(one.against for one in sets)])
    lines = [
        [
            names[one.arm],
            names[one.against],
            str(one.harmed.rows),
            str(one.rescued.rows),
            f"{one.expected:.1f}",
            str(one.rows),
            *([_slices(one.classes, one.expected_classes)] if one.classes else []),
            *([_slices(one.groups, one.expected_groups)] if one.groups else []),
        ]
        for one in sets
    ]
    return TextTable(header, lines, {0, 1})


def _slices(slices: Sequence[Slice], expected: float) -> str:
    harmed, rescued = (sum(getattr(one, key) for one in slices) for key in ("is_harmed", "is_rescued"))
    return f"{harmed}, {rescued} ({expected:.1f}) of {len(slices)}"


def contribution_notes(ablation: Ablation) -> list[str]:
    """Return how to read these tables; nothing without a lattice."""
    if not ablation.lattices:
        return []
    notes = [
        "Alone: the arm with one modality or teacher, minus the arm with none; it includes what any teacher "
        "does, even one that sees no more than the student (control same_modality). In company: the arm with "
        "all, minus that without one. Shapley value: the mean gain over all orders of joining, per pair; the "
        "values add up to all minus none. Beyond the sum of each: the Shapley interaction, above 0 where two "
        "give more together. Comparisons of the tables above keep their p, all others are adjusted together "
        "(Benjamini-Hochberg)"
    ]
    if any(lattice.prices and lattice.prices.prices for lattice in ablation.lattices):
        notes.append("Prices are as stated in the study file; the best gain per cost stands first")
    notes += [text for lattice in ablation.lattices for text in _unknown(lattice)]
    if sets := _harm_sets(ablation):
        turned = any(one.harmed.rows or one.rescued.rows for one in sets)
        notes.append(
            HARM_NOTE if turned else "Harm sets are empty: no row turns in at least 80 % of the pairs"
        )
    return notes


def _unknown(lattice: Lattice) -> list[str]:
    """Return which measures no part has, each with what is missing for the first part."""
    absent = [measure for measure in _MEASURES if not _is_known(lattice.parts, measure)]
    return [
        f"Not known of {lattice.full}: {_MEASURES[measure]} ({getattr(lattice.parts[0], measure).reason})"
        for measure in absent
    ]
