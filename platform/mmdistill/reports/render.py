"""The ablation as text: Markdown for people, CSV for spreadsheets; one set of numbers."""

import csv
import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence

from mmdistill.reports.ablation import Ablation, ArmSummary
from mmdistill.reports.cells import NOTHING, TextTable, difference, judged, number
from mmdistill.reports.claims import Claim
from mmdistill.reports.columns import (
    COLUMNS,
    LEFT,
    baseline_name,
    baselines,
    brackets,
    schemes,
    shortened,
    usual,
)
from mmdistill.reports.render_contributions import (
    contribution_notes,
    contribution_sections,
    contribution_sentences,
)
from mmdistill.statistics import EXACT_UP_TO

WIDTH = 200
# What a spreadsheet would run as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def markdown(ablation: Ablation, *, sections: Sequence[TextTable] = (), notes: Sequence[str] = ()) -> str:
    """Return sentences, warnings, tables of arms, changes and budgets, and footnotes; at most 200 wide.

    Args:
        ablation: of the study.
        sections: further tables.
        notes: further footnotes, without full stops.
    """
    sections = [*contribution_sections(ablation), *sections]
    notes = [*contribution_notes(ablation), *notes]
    parts = [
        f"# {ablation.study}: {ablation.score_name} on {ablation.dataset} ({_basis(ablation)})",
        "\n".join(_item(line) for line in (*ablation.sentences, *contribution_sentences(ablation))),
        "\n".join(_item(f"Warning: {line}.") for line in (*ablation.stamps, *ablation.warnings)),
        _results(ablation),
        _changes(ablation),
        _budgets(ablation),
        *(_table(one.header, one.lines, left=set(one.left)) for one in sections),
        "\n".join(_item(f"{line}.") for line in (*footnotes(ablation), *notes)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _basis(ablation: Ablation) -> str:
    return {
        "test": "test rows",
        "validation": "validation, test not opened yet",
        "search": "best search trial on validation, nothing repeated yet",
    }[ablation.basis]


def _results(ablation: Ablation) -> str:
    return grid(ablation, ablation.arms, usual(ablation))


def grid(ablation: Ablation, arms: Sequence[ArmSummary], columns: Sequence[str]) -> str:
    """Return some columns of some arms as an aligned Markdown table."""
    header = ["arm", *(COLUMNS[name].title(ablation) for name in columns)]
    names = shortened([arm.name for arm in arms])
    lines = [[names[arm.name], *(COLUMNS[c].cell(arm, ablation).text for c in columns)] for arm in arms]
    return _table(header, lines, left={0, *(i + 1 for i, name in enumerate(columns) if name in LEFT)})


def _changes(ablation: Ablation) -> str:
    header, lines = change_lines(ablation)
    return _table(header, lines, left={0, 1, 4, len(header) - 1}) if lines else ""


def change_lines(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and lines: what each change does to its base, re-tuned and frozen side by side."""
    changed: dict[str, dict[bool, ArmSummary]] = {}
    for arm in ablation.arms:
        if arm.against_base:
            readings = changed.setdefault(arm.declared.reading_of, {})
            readings[arm.declared.frozen is not None] = arm
    header = ["change", "of", "n", f"re-tuned minus base {brackets(ablation)}", "verdict"]
    has_frozen = any(True in found for found in changed.values())
    header += ["frozen minus base", "frozen verdict"] if has_frozen else []
    rows = [_change(found)[: len(header)] for found in changed.values()]
    changes, bases = shortened([row[0] for row in rows], 40), shortened([row[1] for row in rows])
    return header, [[changes[change], bases[base], *row] for change, base, *row in rows]


def _change(found: Mapping[bool, ArmSummary]) -> list[str]:
    """Return the cells of one change from its re-tuned and its frozen reading, of which one may lack."""
    tuned, frozen = (found[key].against_base if key in found else None for key in (False, True))
    arm = next(iter(found.values()))
    return [
        arm.declared.change or arm.name,
        arm.declared.base or NOTHING,
        str(tuned.seeds.n) if tuned else NOTHING,
        difference(tuned, crossed=True).text,
        judged(tuned),
        difference(frozen, crossed=False).text,
        judged(frozen),
    ]


def _budgets(ablation: Ablation) -> str:
    header, lines = budget_lines(ablation)
    return _table(header, lines, left={0, len(header) - 1})


def budget_lines(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return header and lines: what came of each arm's search."""
    points = sorted({n for arm in ablation.arms for n, _ in arm.budget.best_of})
    header = ["search", *(f"best of {n}" for n in points), "improving at the end"]
    header += ["pruned", "diverged", "failed", "notes"]
    names = shortened([arm.name for arm in ablation.arms])
    lines = []
    for arm in ablation.arms:
        best = dict(arm.budget.best_of)
        budget = arm.budget
        improving = {None: NOTHING, True: "yes", False: "no"}[budget.still_improving]
        counts = [str(budget.pruned), str(budget.diverged), str(budget.failed)]
        losses = [number(best.get(n)).text for n in points]
        lines.append([names[arm.name], *losses, improving, *counts, "; ".join(arm.notes) or NOTHING])
    return header, lines


_TESTS = {
    "seeds": "t interval over seeds and {test} over pairs",
    "subjects": "seeds averaged within a subject; t interval and {test} over subjects",
    "folds": "seeds averaged within a fold; corrected resampled t over folds (Nadeau and Bengio)",
}
_TUNING = {
    "nested": "Winners were searched inside each outer fold (nested)",
    "fixed_holdout": "Winners were searched once, on rows kept for tuning that no fold tests (fixed_holdout)",
    "shared": "Winners were searched in fold 0 alone (shared)",
}


def footnotes(ablation: Ablation) -> list[str]:
    """Return how to read the table of a study, one sentence each."""
    found = schemes(ablation)
    kinds = dict.fromkeys(scheme.replicate for scheme in found)
    units = " or ".join(dict.fromkeys(scheme.unit for scheme in found))
    tests = [_TESTS[kind].format(test=_test(ablation, kind)) for kind in kinds]
    lines = [
        f"n counts {' or '.join(kinds)}; ± and [ ] are 95 % intervals: "
        f"{'; or '.join(tests)}. [x {units}] resamples seeds and test {units} at once (crossed bootstrap)",
        f"Verdict against {baseline_name(ablation)}, margin {ablation.margin:g}: equivalent if both 90 % "
        "intervals are inside the margin (two one-sided tests at .05, not adjusted); else helps or harms if "
        "both 95 % intervals exclude 0 and the adjusted p is < .05",
        *_baseline_notes(ablation),
        "Verdicts with * are exploratory: Benjamini-Hochberg over all unplanned comparisons with "
        "baseline, reference and base. Planned contrasts: Holm within their family",
        "Reading: re-tuned, every arm has its own search. CPU-s: search, validation and confirmation with "
        "the teachers used. Best of n: lowest validation loss of the first n trials",
    ]
    if any(arm.declared.frozen for arm in ablation.arms):
        lines.append(
            "A frozen arm has no search of its own: it takes the winner's settings of another arm and is "
            "biased towards that arm"
        )
    if any(claim.after_opening for claim in ablation.contrasts):
        lines.append(
            "^n: planned after opening n of the test split, in one Holm family with those planned before"
        )
    lines += _tuning_notes(ablation, kinds)
    return [*lines, f"The test split was opened {ablation.openings} time(s)"]


def _test(ablation: Ablation, kind: str) -> str:
    """Return which test stands behind the p of the comparisons with one kind of replicates."""
    claims = list(ablation.contrasts)
    for arm in ablation.arms:
        shown = (arm.against_baseline, arm.against_reference, arm.against_base)
        claims += [claim for claim in shown if claim]
    sizes = [claim.seeds.n for claim in claims if claim.scheme.replicate == kind and claim.seeds.n]
    beyond = {n > EXACT_UP_TO for n in sizes}
    if True not in beyond:
        return "exact sign-flip test"
    if False not in beyond:
        return "Student's t test"
    return f"sign-flip test (exact up to n = {EXACT_UP_TO}, Student's t beyond)"


def budget_note(ablation: Ablation) -> str:
    """Return what the arms were given, in one sentence."""
    budgets = [arm.budget for arm in ablation.arms if not arm.declared.frozen]
    if not budgets:
        return "No arm has a search of its own"
    parts = [
        _span([b.trials for b in budgets], "search trials"),
        _span([b.dimensions for b in budgets], "searched settings"),
        _span([round(b.cpu_s) for b in budgets], "CPU-s"),
    ]
    return f"Budget per arm: {', '.join(parts)}"


def _span(counts: Sequence[int], unit: str) -> str:
    low, high = min(counts), max(counts)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _tuning_notes(ablation: Ablation, kinds: Collection[str]) -> list[str]:
    """Return where winners were searched, unless there is but one fold."""
    arms: dict[str, list[str]] = {}
    for arm in ablation.arms:
        arms.setdefault(arm.declared.tuning, []).append(arm.name)
    arms.pop("mixed", None)  # Of an arm that left rows and was never declared.
    if set(arms) == {"nested"} and set(kinds) == {"seeds"}:
        return []
    if len(arms) == 1:
        return [_TUNING[tuning] for tuning in arms]
    return [f"{_TUNING[tuning]}: {', '.join(names)}" for tuning, names in arms.items()]


def _baseline_notes(ablation: Ablation) -> list[str]:
    compared = baselines(ablation)
    if len(compared) < 2:
        return []
    parts = [f"{', '.join(arms)} with {name}" for name, arms in compared.items()]
    return [f"Each arm is compared with the arm without a teacher on its own data: {'; '.join(parts)}"]


def _item(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], left: set[int]) -> str:
    """Return an aligned Markdown table; a last column that would not fit is cut."""
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in (header, *lines)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    widths[-1] = max(3, min(widths[-1], WIDTH - sum(widths[:-1]) - 3 * len(widths) - 1))
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [_padded(text, widths[i], left=i in left) for i, text in enumerate(line)]
        for line in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _padded(text: str, width: int, *, left: bool) -> str:
    cut = text if len(text) <= width else text[: width - 1] + "…"
    return cut.ljust(width) if left else cut.rjust(width)


def as_csv(
    ablation: Ablation, arms: Sequence[ArmSummary] | None = None, columns: Sequence[str] | None = None
) -> str:
    """Return one line per arm with full precision; text that a spreadsheet would run gets a leading quote.

    Args:
        ablation: the summary.
        arms: by default all.
        columns: names in ``COLUMNS``; by default every value there is.
    """
    lines = [exact(arm, ablation, columns) for arm in (ablation.arms if arms is None else arms)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else ["arm"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _safe(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def exact(arm: ArmSummary, ablation: Ablation, columns: Sequence[str] | None = None) -> dict[str, object]:
    """Return the values of an arm with full precision, those behind some columns or all, and the stamps."""
    line = _csv_line(arm, ablation)
    if columns is None:
        return line
    keys = [key.format(score=ablation.score_name) for name in columns for key in COLUMNS[name].keys]
    return {key: line[key] for key in dict.fromkeys(["arm", *keys, "stamps"])}


def _safe(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_line(arm: ArmSummary, ablation: Ablation) -> dict[str, object]:
    best = dict(arm.budget.best_of)
    points = sorted({n for other in ablation.arms for n, _ in other.budget.best_of})
    claim = arm.against_baseline
    return {
        "arm": arm.name,
        "recipe": arm.declared.recipe,
        "base": arm.declared.base,
        "change": arm.declared.change,
        "frozen": arm.declared.frozen,
        "revision": arm.declared.revision,
        "opening": arm.opening,
        "basis": ablation.basis,
        "folds": arm.declared.folds,
        "tuning": arm.declared.tuning,
        "replicate": arm.scheme.replicate,
        "n": arm.score.n,
        ablation.score_name: arm.score.mean,
        f"{ablation.score_name}_low": arm.score.low,
        f"{ablation.score_name}_high": arm.score.high,
        "baseline": arm.declared.baseline,
        **_csv_claim("baseline", claim),
        **_csv_claim("reference", arm.against_reference),
        **_csv_claim("base", arm.against_base),
        "log_loss": arm.log_loss,
        "calibration_error": arm.calibration_error,
        "worst_class": arm.worst_class,
        "trials": arm.budget.trials,
        "dimensions": arm.budget.dimensions,
        "cpu_s": arm.budget.cpu_s,
        "pruned": arm.budget.pruned,
        "diverged": arm.budget.diverged,
        "failed": arm.budget.failed,
        **{f"best_of_{n}": best.get(n) for n in points},
        "still_improving": arm.budget.still_improving,
        "verdict": claim.verdict if claim else None,
        "planned": bool(claim.question) if claim else None,
        "missing": "; ".join(arm.missing),
        "notes": "; ".join(arm.notes),
        "stamps": "; ".join(ablation.stamps),
    }


def _csv_claim(name: str, claim: Claim | None) -> dict[str, object]:
    seeds, crossed = (claim.seeds, claim.crossed) if claim else (None, None)
    return {
        f"minus_{name}": seeds.mean if seeds else None,
        f"minus_{name}_seeds_low": seeds.low if seeds else None,
        f"minus_{name}_seeds_high": seeds.high if seeds else None,
        f"minus_{name}_crossed_low": crossed.low if crossed else None,
        f"minus_{name}_crossed_high": crossed.high if crossed else None,
        f"minus_{name}_p": claim.p if claim else None,
        f"minus_{name}_adjusted_p": claim.adjusted_p if claim else None,
    }
