"""`mmdistill report`: a study as one HTML file; and what every run leaves for its readers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.cli.table import PAPER_COLUMNS
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.answers import Answers, answers_of
from mmdistill.reports.importance import searches_of
from mmdistill.reports.page.document import page
from mmdistill.reports.paper import latex
from mmdistill.reports.standing import standing

PAGE = Path("report") / "index.html"
TABLE = Path("report") / "table.tex"


def show_report(study: Path, output: Path | None, *, as_json: bool) -> int:
    """Write the report of a study, ``report/index.html`` in its folder by default, and print its path.

    Raises:
        InputError: there is no study, or ``output`` is a folder.
    """
    if output is not None and readable(output).is_dir():
        raise InputError([Problem(str(output), "this is a folder", "name a file, e.g. report.html")])
    folder = StudyFolder.open(readable(study))
    path = output or folder.root / PAGE
    _write(path, page(answers_of(latest(folder)), partial(searches_of, folder)))
    if as_json:
        print_json({"report": path})
    else:
        print(path)
    return 0


def write_readables(root: Path, answers: Answers) -> dict[str, Path]:
    """Write report and LaTeX table of a study that has just ended; return their paths by name.

    Whatever hinders that is said and no more: the study itself is safe in its records.
    """
    folder = StudyFolder.open(root)
    texts: dict[str, tuple[Path, Callable[[], str]]] = {
        "report": (root / PAGE, lambda: page(answers, partial(searches_of, folder))),
        "latex": (root / TABLE, lambda: _latex(answers)),
    }
    written = {}
    for name, (path, text) in texts.items():
        try:
            _write(path, text())
            written[name] = path
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{path} was not written: {reason}. The study is complete; `mmdistill report` tries again.")
    return written


def _latex(answers: Answers) -> str:
    ablation = answers.ablation
    return latex(ablation, ablation.arms, PAPER_COLUMNS, standing(answers.readings))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
