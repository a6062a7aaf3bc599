"""The table for a paper: LaTeX that compiles, and HTML; the numbers are those of the Markdown table."""

import html
import unicodedata
from collections.abc import Collection, Sequence

from mmdistill.reports.ablation import Ablation, ArmSummary
from mmdistill.reports.cells import NOTHING, Cell
from mmdistill.reports.columns import COLUMNS, LEFT
from mmdistill.reports.render import budget_note, footnotes
from mmdistill.reports.standing import Standing

STANDALONE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\usepackage[a4paper,margin=20mm]{geometry}
\begin{document}
%s\end{document}
"""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "…": r"\ldots{}",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}


def latex(ablation: Ablation, arms: Sequence[ArmSummary], columns: Sequence[str], marks: Standing) -> str:
    """Return a table environment; its preamble needs ``booktabs`` and ``graphicx``.

    Args:
        ablation: of the study.
        arms: the lines.
        columns: names in ``COLUMNS``.
        marks: the best mean is bold, the second underlined.
    """
    # Loading pandas takes longer than the other formats take altogether.
    import pandas

    frame = pandas.DataFrame(
        [[escaped(arm.name), *_latex_cells(arm, ablation, columns, marks)] for arm in arms],
        columns=["arm", *(escaped(COLUMNS[name].title(ablation)) for name in columns)],
    )
    sides = "l" + "".join("l" if name in LEFT else "r" for name in columns)
    body: str = frame.style.hide(axis="index").to_latex(hrules=True, column_format=f"@{{}}{sides}@{{}}")
    notes = " ".join(f"{escaped(note)}." for note in paper_notes(ablation, columns, marks, rows=len(arms)))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table}[htbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escaped(caption(ablation))}}}",
            rf"\label{{tab:{_label(ablation.study)}}}",
            # Shrunk only where it is wider than the line.
            rf"\sbox0{{%{chr(10)}{body.rstrip()}}}%",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
            "",
            r"\vspace{1ex}",
            rf"\parbox{{\linewidth}}{{\scriptsize\raggedright {notes}}}",
            r"\end{table}",
            "",
        ]
    )


def caption(ablation: Ablation) -> str:
    """Return the title of a study's table."""
    rows = {"test": "test rows", "validation": "validation rows", "search": "validation rows, best trial"}
    return f"{ablation.study}: {ablation.score_name} on {ablation.dataset} ({rows[ablation.basis]})"


def paper_notes(
    ablation: Ablation, columns: Sequence[str], marks: Standing, *, rows: int | None = None
) -> list[str]:
    """Return what a reader must know to read a table: n, test, budget, reading, openings, marks.

    Args:
        ablation: of the study.
        columns: that the table has.
        marks: among the arms it shows.
        rows: how many arms it shows; all by default.
    """
    shown = "" if rows in (None, len(ablation.arms)) else " shown"
    bold = f"Bold: highest mean, above every other arm{shown} by seeds x test units at 95 %"
    if marks.best is None:
        bold = f"Nothing is bold: no arm{shown} is above every other one by seeds x test units at 95 %"
    marked = [f"{bold}. Underlined: second mean"] if "score" in columns and marks.second else []
    return [*footnotes(ablation), budget_note(ablation), *marked, *ablation.stamps, *ablation.warnings]


def _latex_cells(arm: ArmSummary, ablation: Ablation, columns: Sequence[str], marks: Standing) -> list[str]:
    marked = {marks.best: r"\mathbf", marks.second: r"\underline"}
    return [
        _latex_cell(COLUMNS[name].cell(arm, ablation), marked.get(arm.name, "") if name == "score" else "")
        for name in columns
    ]


def _latex_cell(cell: Cell, mark: str) -> str:
    if not cell.is_number:
        return "--" if cell.lead == NOTHING else escaped(cell.text)
    lead = f"{mark}{{{cell.lead}}}" if mark else cell.lead
    rest = cell.rest.replace("±", r"\pm").replace("] [", r"]\ [").replace(f"[{NOTHING}]", r"[\mbox{--}]")
    return f"${lead}\\ {rest}$" if rest and not rest.startswith("\\pm") else f"${f'{lead} {rest}'.strip()}$"


def escaped(text: str) -> str:
    """Return text that LaTeX prints as it is; of what its usual fonts lack, the code point."""
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    if letter.isascii():
        return letter if letter.isprintable() else " "
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        return rf"\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"[U+{ord(letter):04X}]"


def _label(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def web(ablation: Ablation, arms: Sequence[ArmSummary], columns: Sequence[str], marks: Standing) -> str:
    """Return a table element with its notes below; arguments as in :func:`latex`."""
    marked = {marks.best: "b", marks.second: "u"}
    head = "".join(f"<th>{html.escape(t)}</th>" for t in _titles(ablation, columns))
    lines = []
    for arm in arms:
        cells = [
            _web_cell(COLUMNS[name].cell(arm, ablation), marked.get(arm.name) if name == "score" else None)
            for name in columns
        ]
        lines.append(f'<tr><th scope="row">{html.escape(arm.name)}</th>{"".join(cells)}</tr>')
    notes = paper_notes(ablation, columns, marks, rows=len(arms))
    items = "".join(f"<li>{html.escape(note)}.</li>\n" for note in notes)
    return (
        f"<table>\n<caption>{html.escape(caption(ablation))}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>\n<ul>\n{items}</ul>\n"
    )


def _titles(ablation: Ablation, columns: Collection[str]) -> list[str]:
    return ["arm", *(COLUMNS[name].title(ablation) for name in columns)]


def _web_cell(cell: Cell, mark: str | None) -> str:
    lead = html.escape(cell.lead)
    lead = f"<{mark}>{lead}</{mark}>" if mark and cell.is_number else lead
    text = f"{lead} {html.escape(cell.rest)}".strip()
    return f'<td align="right">{text}</td>' if cell.is_number else f"<td>{text}</td>"
