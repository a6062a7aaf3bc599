"""The commands and their flags.

Imports stay light here: a command loads what it needs, so that `mmdistill --help` answers at once.
"""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

import mmdistill
from mmdistill.cli.papers import figure, report, rerun, table, why
from mmdistill.cli.parameters import AsJson, Study
from mmdistill.errors import InputError, MmdistillError
from mmdistill.redaction import redacted

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

app = App(
    name="mmdistill",
    help=mmdistill.__doc__,
    version=mmdistill.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

for _paper in (table, figure, report, why, rerun):
    app.command(_paper)


@app.command
def run(
    file: Annotated[Path, Parameter(help="Study file, e.g. search_spaces/quickstart.toml.")],
    /,
    *edits: Annotated[
        str, Parameter(help="path.to.setting=value, laid on top of the file, e.g. search.trials=4.")
    ],
    output: Annotated[Path | None, Parameter(help="Folder of the study; results/<name> by default.")] = None,
    cache: Annotated[
        Path | None, Parameter(help="Folder of the stage cache; cache/ in the study by default.")
    ] = None,
    takeover: Annotated[
        bool,
        Parameter(negative="", help="Take the study from another driver, which ends before its next commit."),
    ] = False,
    retry_failed: Annotated[
        bool, Parameter(negative="", help="Try orders again that were given up.")
    ] = False,
    address: Annotated[
        str, Parameter(help="Ray to run on: local, HOST:PORT of a cluster, or auto inside a Ray job.")
    ] = "local",
    as_json: AsJson = False,
) -> int:
    """Run a study, or what is left of it; print its verdicts and its table.

    Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 done but some orders failed, 130 interrupted.
    """
    from mmdistill.cli.claiming import refuse_second_driver

    if not takeover:
        refuse_second_driver(file, edits, output)
    from mmdistill.cli.running import run_study

    return run_study(
        file,
        edits,
        output=output,
        cache=cache,
        address=address,
        takeover=takeover,
        retry_failed=retry_failed,
        as_json=as_json,
    )


@app.command
def plan(
    file: Annotated[Path, Parameter(help="Study file, e.g. search_spaces/quickstart.toml.")],
    /,
    *edits: Annotated[
        str, Parameter(help="path.to.setting=value, laid on top of the file, e.g. search.trials=4.")
    ],
    output: Annotated[Path | None, Parameter(help="Folder of the study; results/<name> by default.")] = None,
    cache: Annotated[
        Path | None, Parameter(help="Folder of the stage cache; cache/ in the study by default.")
    ] = None,
    pilot: Annotated[
        bool, Parameter(negative="--no-pilot", help="Time a few steps of what was never timed here.")
    ] = True,
    as_json: AsJson = False,
) -> int:
    """Print what `run` would do now: arms, runs, shared stages, cost, the difference it can detect.

    Nothing is written. Costs are from the finished studies beside the output, else from some seconds of
    training.
    """
    from mmdistill.cli.planning import show_plan

    return show_plan(file, edits, output=output, cache=cache, may_pilot=pilot, as_json=as_json)


@app.command
def forecast(
    file: Annotated[Path, Parameter(help="Study file, e.g. search_spaces/quickstart.toml.")],
    /,
    *edits: Annotated[
        str, Parameter(help="path.to.setting=value, laid on top of the file, e.g. run.data.label_fraction=1.")
    ],
    as_json: AsJson = False,
) -> int:
    """Print whether there is anything to distil, from some seconds of training; nothing is written.

    A teacher on the privileged modalities knows more than the label. How much of that do the student's
    modalities predict? Nothing (R2 of 0 or less) means that only label supply can transfer: what the teacher
    is worth in place of the labels that are missing.
    """
    from mmdistill.cli.forecasting import show_forecast

    return show_forecast(file, edits, as_json=as_json)


@app.command
def status(study: Study, /, *, as_json: AsJson = False) -> int:
    """Print how far a study has come."""
    from mmdistill.cli.reading import show_status

    return show_status(study, as_json=as_json)


@app.command
def query(
    path: Annotated[Path, Parameter(help="Folder of a study, or of several: each row says its `study`.")],
    sql: Annotated[
        str,
        # A query may begin with a comment, `-- ...`.
        Parameter(
            allow_leading_hyphen=True, help="One SELECT, or @name of a named query; @ alone lists those."
        ),
    ],
    /,
    *,
    layout: Annotated[
        Literal["table", "csv", "json", "arrow", "parquet"],
        Parameter(name="--format", help="How to print it; arrow is an IPC stream."),
    ] = "table",
    output: Annotated[Path | None, Parameter(help="File to write the rows to; stdout by default.")] = None,
    limit: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=86400),
            help="Seconds after which the query is stopped, at most those of a day.",
        ),
    ] = 30.0,
    as_json: AsJson = False,
) -> int:
    """Print the rows of one SELECT over the tables of a study, or of all studies in a folder.

    Tables: trials, stages, epochs, predictions, matrices, attempts, studies, test_openings; `mmdistill
    schema` tells their columns. A study may be running.
    """
    from mmdistill.cli.query import show_query

    return show_query(path, sql, layout="json" if as_json else layout, output=output, limit=limit)


@app.command
def schema(*, as_json: AsJson = False) -> int:
    """Print every table and column of a study: type, unit and meaning, and whether it may be null."""
    from mmdistill.cli.schema import show_schema

    return show_schema(as_json=as_json)


@app.command
def importance(
    study: Study,
    /,
    *,
    arm: Annotated[str | None, Parameter(help="One arm; all that were searched by default.")] = None,
    method: Annotated[
        Literal["fanova", "mdi", "ped-anova"],
        Parameter(
            help="fanova: share of the variance of the loss over the space; mdi: use to a forest's splits; "
            "ped-anova: what sets the best trials apart. Three questions: never mix their numbers."
        ),
    ] = "fanova",
    as_json: AsJson = False,
) -> int:
    """Print which hyperparameters mattered in the searches of a study, on validation rows."""
    from mmdistill.cli.importance import show_importance

    return show_importance(study, arm, method, as_json=as_json)


@app.command
def compare(
    studies: Annotated[Path, Parameter(help="A study, or a folder that holds studies.")],
    /,
    *more: Annotated[Path, Parameter(help="Further ones.")],
    as_json: AsJson = False,
) -> int:
    """Print how arms rank over the data sets of several studies, and which are not told apart.

    Seeds are averaged first: a data set is one replicate (Friedman's test, Nemenyi's critical difference).
    """
    from mmdistill.cli.comparing import show_ranks

    return show_ranks([studies, *more], as_json=as_json)


@app.command
def verify(
    study: Study,
    /,
    *,
    cache: Annotated[
        Path | None, Parameter(help="Folder of the stage cache; cache/ in the study by default.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compute every hash of a study again and print what is damaged; 1 if anything is. Changes nothing."""
    from mmdistill.cli.verify import show_audit

    return show_audit(study, cache, as_json=as_json)


@app.command
def rebuild(study: Study, /, *, as_json: AsJson = False) -> int:
    """Derive the tables of a study from its records again; print their content hashes, before and after."""
    from mmdistill.cli.rebuild import rebuild_tables

    return rebuild_tables(study, as_json=as_json)


@app.command
def merge(
    output: Annotated[Path, Parameter(help="New folder for all of them.")],
    /,
    *studies: Annotated[Path, Parameter(help="Folders of studies, e.g. copied from several machines.")],
    as_json: AsJson = False,
) -> int:
    """Put studies side by side in one new folder, with a record of where each came from.

    Every hash is verified first; stage caches stay behind. `query OUTPUT` asks all of them at once, and
    `table OUTPUT/NAME` is the table of one.
    """
    from mmdistill.cli.merge import merge_studies

    return merge_studies(output, studies, as_json=as_json)


@app.command
def tensorboard(
    study: Study,
    /,
    *,
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535), help="TCP port.")] = 6006,
) -> int:
    """Serve a study's curves with TensorBoard on this machine.

    The address it prints shows the means of the arms first; clear the filter `^means` for single runs.
    """
    from mmdistill.cli.reading import serve_tensorboard

    return serve_tensorboard(study, port)


@app.command
def export(
    layout: Annotated[
        Literal["optuna", "tensorboard"],
        Parameter(name="FORMAT", help="optuna: for optuna-dashboard; tensorboard: the tree of event files."),
    ],
    study: Study,
    target: Annotated[
        Path,
        Parameter(
            help="optuna: new file, .db or .sqlite3 for SQLite, .journal or .log; tensorboard: new folder."
        ),
    ],
    /,
    *,
    runs: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="tensorboard: most single runs; 500 by default.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write a study for another tool; nothing is overwritten.

    `export optuna` makes one Optuna study per arm: `optuna-dashboard sqlite:///FILE` shows them.
    `export tensorboard` makes the tree that `run` keeps up to date: `tensorboard --logdir FOLDER` shows it.
    """
    from mmdistill.cli.exporting import export_study

    return export_study(layout, study, target, runs, as_json=as_json)


@app.command
def datasets(*, as_json: AsJson = False) -> int:
    """List the data sets a study may name."""
    from mmdistill.cli.listing import show_datasets

    return show_datasets(as_json=as_json)


@app.command
def recipes(*, as_json: AsJson = False) -> int:
    """List the recipes an arm may name, with their sources."""
    from mmdistill.cli.listing import show_recipes

    return show_recipes(as_json=as_json)


@app.command
def losses(*, as_json: AsJson = False) -> int:
    """List the losses: where to import them, their sources, settings and what they need."""
    from mmdistill.cli.listing import show_losses

    return show_losses(as_json=as_json)


@app.command
def doctor(*, as_json: AsJson = False) -> int:
    """Check versions, resources, Ray's authentication and the transport solver."""
    from mmdistill.cli.doctor import show_doctor

    return show_doctor(as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of one command; ``arguments`` are those of the process by default."""
    for stream in (sys.stdout, sys.stderr):
        # Whatever a terminal cannot show is escaped, never an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _answer(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; what is still buffered must not raise when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _answer(arguments: Sequence[str] | None) -> int:
    try:
        code: int | None = app(
            None if arguments is None else list(arguments),
            print_error=False,
            exit_on_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        error.verbose = False
        return _fail([f"{error} (see mmdistill --help)"], WRONG_INPUT)
    except InputError as error:
        return _fail([str(problem) for problem in error.problems], WRONG_INPUT)
    except MmdistillError as error:
        return _fail([str(error)], FAILED)
    except KeyboardInterrupt:
        return _fail(["interrupted"], INTERRUPTED)
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full disk or a missing right is no bug: say what and where.
        return _fail([f"{error.filename or 'the system'}: {error.strerror or error}"], FAILED)
    return code or 0


def _fail(messages: Sequence[str], code: int) -> int:
    for message in messages:
        print(f"mmdistill: {redacted(' '.join(message.split()))}", file=sys.stderr)
    return code
