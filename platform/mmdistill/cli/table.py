"""`mmdistill table`: the verdicts and the ablation table, for people, programs and papers."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.registry import unknown_name
from mmdistill.reports.ablation import Ablation, summarise_readings
from mmdistill.reports.arms import arm_names
from mmdistill.reports.columns import columns_of, usual
from mmdistill.reports.paper import STANDALONE, caption, latex, paper_notes, web
from mmdistill.reports.readings import Readings, readings_of
from mmdistill.reports.render import as_csv, exact, grid
from mmdistill.reports.render_curves import Curves, curves_of, with_curves
from mmdistill.reports.standing import Standing, standing

Layout = Literal["markdown", "latex", "html", "csv", "json"]
# What fits into the text width of a paper.
PAPER_COLUMNS = ["n", "score", "minus_baseline", "verdict"]


def show_table(
    study: Path,
    layout: Layout,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    metric: str | None = None,
    standalone: bool = False,
) -> int:
    """Print the table of a study.

    Args:
        study: its folder.
        layout: the format.
        rows: arms, or patterns like ``pkdot*``; by default all.
        columns: names in ``columns_of``; by default the usual ones.
        metric: in place of the study's score.
        standalone: with a preamble; of LaTeX only.

    Raises:
        InputError: with every arm, column or metric that does not exist.
    """
    tables = latest(StudyFolder.open(readable(study)))
    problems = _format_problems(layout, standalone=standalone)
    try:
        readings = readings_of(tables, metric)
    except InputError as error:
        problems += error.problems
        readings = readings_of(tables)
    ablation = summarise_readings(readings)
    arms = chosen(arm_names(arm.declared for arm in ablation.arms), rows, "arm", "--rows", problems)
    shown = chosen({name: name for name in columns_of(ablation)}, columns, "column", "--columns", problems)
    if problems:
        raise InputError(problems)
    if layout in ("markdown", "csv", "json") and not (rows or columns):
        _print_all(ablation, layout, None if readings.is_beside else curves_of(readings, tables))
    else:
        _print_some(ablation, readings, layout, arms, shown if columns else None, standalone=standalone)
    return 0


def _format_problems(layout: Layout, *, standalone: bool) -> list[Problem]:
    if not standalone or layout == "latex":
        return []
    rule = f"a preamble belongs to LaTeX, but the format is {layout}"
    return [Problem("--standalone", rule, "leave it out, or give --format latex")]


def chosen(
    known: Mapping[str, str], asked: Sequence[str], kind: str, where: str, problems: list[Problem]
) -> list[str]:
    """Return what was asked for, by a name or by a pattern; everything if nothing was.

    Args:
        known: what each name leads to, see :func:`mmdistill.reports.arms.arm_names`.
        asked: names and patterns.
        kind: what they name.
        where: the flag.
        problems: gets those that match nothing.
    """
    if not asked:
        return [name for name, target in known.items() if name == target]
    found: dict[str, None] = {}
    for name in asked:
        # An arm may be called like a pattern.
        matches = [name] if name in known else fnmatch.filter(known, name)
        if not matches:
            problems.append(unknown_name(kind, name, where, list(known)))
        say_merged(known, matches)
        found |= dict.fromkeys(known[match] for match in matches)
    return list(found)


def say_merged(known: Mapping[str, str], names: Sequence[str]) -> None:
    """Say which of some names lead to another arm."""
    for name in names:
        if known[name] != name:
            say(f"{name} is {known[name]} here: equal arms are one")


def _print_all(ablation: Ablation, layout: Layout, curves: Curves | None) -> None:
    if layout == "json":
        print_json(ablation._asdict() | {"curves": curves})
    elif layout == "csv":
        print(as_csv(ablation), end="")
    else:
        print(with_curves(ablation, curves), end="")


def _print_some(
    ablation: Ablation,
    readings: Readings,
    layout: Layout,
    names: Collection[str],
    columns: Sequence[str] | None,
    *,
    standalone: bool,
) -> None:
    by_name = {arm.name: arm for arm in ablation.arms}
    arms = [by_name[name] for name in names]
    notes = paper_notes(ablation, columns or usual(ablation), Standing(None, None))
    if layout == "csv":
        print(as_csv(ablation, arms, columns), end="")
    elif layout == "json":
        lines = [exact(arm, ablation, columns) for arm in arms]
        print_json({"title": caption(ablation), "rows": lines, "notes": notes})
    elif layout == "markdown":
        listed = "\n".join(f"- {note}." for note in notes)
        print(f"# {caption(ablation)}\n\n{grid(ablation, arms, columns or usual(ablation))}\n\n{listed}")
    else:
        marks = Standing(None, None) if readings.is_beside else standing(readings, names)
        render = latex if layout == "latex" else web
        text = render(
            ablation, arms, columns or (PAPER_COLUMNS if layout == "latex" else usual(ablation)), marks
        )
        print(STANDALONE % text if standalone else text, end="")
