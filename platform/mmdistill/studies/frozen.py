"""Frozen readings: arms that are not searched but take the settings of another arm's winner.

Beside the same arm re-tuned, a frozen one tells what a part is worth where nothing else may adapt: a
knock-out, biased towards the arm it was taken from.
"""

from collections.abc import Mapping

from mmdistill.errors import Problem
from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import unknown_name
from mmdistill.studies.arm import Arm, folds_identity, identity
from mmdistill.studies.file import ArmEntry
from mmdistill.studies.space import inherited_paths
from mmdistill.terms.base import Task


def frozen_arm(
    entry: ArmEntry,
    runs: Mapping[str, RunSettings],
    searched: Mapping[str, Arm],
    task: Task,
    where: str,
    problems: list[Problem],
) -> Arm:
    """Return the arm of an entry that names another's winner; adds what is wrong with it to ``problems``.

    Args:
        entry: the arm, with ``frozen``.
        runs: of every arm.
        searched: the arms that are searched.
        task: decides which settings matter.
        where: the study file.
        problems: of the study so far.
    """
    source, run = str(entry.frozen), runs[entry.name]
    at = f"{where}: arms.{entry.name}"
    inherits: tuple[str, ...] = ()
    if source not in searched:
        problems.append(_no_source(source, runs, searched, f"{at}.frozen"))
    else:
        problems += _contradictions(entry, run, searched[source], at)
        inherits, wrong = inherited_paths(entry, run, searched[source].space, task, at)
        problems += wrong
    return Arm(
        entry.name,
        entry.recipe,
        run,
        {},
        frozen=source,
        inherits=inherits,
        base=entry.base,
        change=entry.change,
    )


def _no_source(source: str, runs: Mapping[str, RunSettings], searched: Mapping[str, Arm], at: str) -> Problem:
    if source in runs:
        rule = f"{source!r} is frozen itself, and only an arm that is searched has a winner"
        return Problem(at, rule, "name an arm that is searched")
    return unknown_name("arm", source, at, list(searched))


def _contradictions(entry: ArmEntry, run: RunSettings, source: Arm, at: str) -> list[Problem]:
    problems = []
    if any(asked is not False for asked in entry.space.values()):
        problems.append(Problem(f"{at}.space", "a frozen arm is not searched", "remove its space"))
    if identity(run) == identity(source.run):
        rule = f"it is the same run as {source.name!r}, whose winner it would repeat"
        problems.append(Problem(f"{at}.frozen", rule, "make it differ, or remove it"))
    if folds_identity(run.data) != folds_identity(source.run.data):
        rule = f"{source.name!r} has no winner in the folds of this arm"
        problems.append(Problem(f"{at}.frozen", rule, "give both arms the same folds"))
    return problems
