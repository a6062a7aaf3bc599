"""The commands for papers and their flags: tables, figures, and where a number comes from."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from mmdistill.cli.parameters import AsJson, Rows, Study


def table(
    study: Study,
    /,
    *,
    layout: Annotated[
        Literal["markdown", "latex", "html", "csv", "json"],
        Parameter(name="--format", help="How to print it."),
    ] = "markdown",
    rows: Rows = (),
    columns: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            consume_multiple=True,
            show_default=False,
            help="E.g. n score minus_baseline p log_loss calibration_error worst_class budget verdict.",
        ),
    ] = (),
    metric: Annotated[
        str | None, Parameter(help="Read in place of the score, e.g. log_loss; carries no verdict.")
    ] = None,
    standalone: Annotated[
        bool, Parameter(negative="", help="LaTeX with a preamble, ready to compile.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Print the verdicts and the ablation table of a study.

    LaTeX needs the packages booktabs and graphicx. Bold is a mean that stands above every other one by
    seeds x test units; only beside it is the second underlined.
    """
    from mmdistill.cli.table import show_table

    return show_table(
        study,
        "json" if as_json else layout,
        rows=rows,
        columns=columns,
        metric=metric,
        standalone=standalone,
    )


def figure(
    study: Study,
    /,
    *kinds: Annotated[
        str, Parameter(name="KIND", help="E.g. forest; every kind the study can fill by default.")
    ],
    output: Annotated[
        Path | None, Parameter(help="Folder of the files; report/figures/ in the study by default.")
    ] = None,
    rows: Rows = (),
    curve: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            consume_multiple=True,
            show_default=False,
            help="For the kind curves, e.g. term/transport.",
        ),
    ] = (),
    beside: Annotated[
        tuple[Path, ...],
        Parameter(
            name="--with",
            negative="",
            consume_multiple=True,
            show_default=False,
            help="For the kind ranks: further studies, or folders that hold some.",
        ),
    ] = (),
    as_json: AsJson = False,
) -> int:
    """Draw a study for a paper, as PDF with embedded fonts and as PNG; print the files.

    Kinds: budget, calibration, curves, forest, labels, lattice, ranks, selection, similarity.
    """
    from mmdistill.cli.figure import show_figures

    return show_figures(study, kinds, output=output, rows=rows, curves=curve, beside=beside, as_json=as_json)


def report(
    study: Study,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(help="The file; report/index.html in the study by default.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write a study as one HTML file: verdict, forest plot, table and charts; print its path.

    It opens from disk and offline, on a phone and in print, and asks no network for anything.
    """
    from mmdistill.cli.report import show_report

    return show_report(study, output, as_json=as_json)


def why(
    study: Study,
    /,
    *,
    arm: Annotated[str, Parameter(help="Whose number to explain, e.g. hinton.")],
    metric: Annotated[str | None, Parameter(help="The study's score by default.")] = None,
    as_json: AsJson = False,
) -> int:
    """Print where a number of the table comes from: runs, settings, versions, and what was left out."""
    from mmdistill.cli.why import show_why

    return show_why(study, arm, metric, as_json=as_json)


def rerun(
    study: Study,
    /,
    *trials: Annotated[str, Parameter(name="TRIAL", help="Key of a run, as `mmdistill why` prints it.")],
    arm: Annotated[str | None, Parameter(help="Every run behind the score of this arm.")] = None,
    cache: Annotated[
        Path | None, Parameter(help="Folder of the stage cache; cache/ in the study by default.")
    ] = None,
    fresh: Annotated[
        bool, Parameter(negative="", help="Train the teachers again too, and take nothing from the cache.")
    ] = False,
    tolerance: Annotated[
        float | None,
        Parameter(
            validator=Number(gte=0),
            help="Largest difference that counts as none; by default 0 on the machine and versions of the "
            "record, else 0.05.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compute recorded runs again, from their recorded settings, and compare; the study stays as it is.

    A test reading is repeated on rows that were read before: no opening is spent. Exit codes: 0 the same,
    1 different.
    """
    from mmdistill.cli.rerun import show_rerun

    return show_rerun(study, trials, arm=arm, cache=cache, fresh=fresh, tolerance=tolerance, as_json=as_json)
