"""`mmdistill export`: a study as files of other tools."""

import shlex
from pathlib import Path
from typing import Literal

from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder


def export_study(
    layout: Literal["optuna", "tensorboard"], study: Path, target: Path, runs: int | None, *, as_json: bool
) -> int:
    """Write a study for another tool, say what was written, and return the exit code."""
    folder, target = StudyFolder.open(readable(study)), readable(target)
    if layout == "tensorboard":
        return _tensorboard(folder, target, runs, as_json=as_json)
    if runs is not None:
        rule = "only `export tensorboard` leaves runs out"
        raise InputError([Problem("--runs", rule, "leave it out: every trial is exported")])
    return _optuna(folder, target, as_json=as_json)


def _optuna(folder: StudyFolder, file: Path, *, as_json: bool) -> int:
    """Write one Optuna study per arm into a new file, and print their names."""
    # Optuna takes a second to import.
    from mmdistill.cluster.optuna_export import SQLITE, export_optuna

    exported = export_optuna(folder, file)
    if as_json:
        print_json({"file": file, "studies": exported})
        return 0
    for one in exported:
        print(f"{one.name}: {one.trials} trials")
    url = f"sqlite:///{file}" if file.suffix in SQLITE else str(file)
    say(f"Look at them with: optuna-dashboard {shlex.quote(url)}")
    return 0


def _tensorboard(folder: StudyFolder, target: Path, runs: int | None, *, as_json: bool) -> int:
    """Write the tree of event files into a new folder."""
    from mmdistill.records.board import MOST_RUNS, Board

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        rule = "something is there, and nothing is overwritten"
        raise InputError([Problem(str(target), rule, "give a new folder")])
    board = Board(folder, target, runs or MOST_RUNS)
    board.catch_up()
    if as_json:
        print_json({"folder": target, "runs": board.runs, "left_out": board.left_out})
        return 0
    more = f"; {board.left_out} left out, more with --runs" if board.left_out else ""
    print(f"{board.runs} runs and the means of the arms{more}")
    say(f"Look at them with: tensorboard --logdir {shlex.quote(str(target))}")
    return 0
