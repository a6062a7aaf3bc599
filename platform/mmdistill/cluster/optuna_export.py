"""The searches of a study as Optuna studies, one per arm and tuned fold: a copy for other tools.

Nothing here is ever read back; the records are the truth.
"""

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmdistill.errors import InputError, Problem, StudyError
from mmdistill.records.criterion import CRITERIA
from mmdistill.records.rows import TrialRow
from mmdistill.records.study import StudyFolder

SQLITE, JOURNAL = (".db", ".sqlite", ".sqlite3"), (".journal", ".log")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}

Curves = dict[str, dict[int, float]]


class Exported(NamedTuple):
    """One Optuna study that was written.

    Attributes:
        name: of the Optuna study: the study's, the arm's and, where there are several, the fold's.
        trials: how many it holds.
    """

    name: str
    trials: int


def export_optuna(folder: StudyFolder, file: Path) -> list[Exported]:
    """Write the searches of a study to a new file; return what it holds.

    Values are what the search minimised (validation log-loss, or 1 - CCC), intermediate values the same
    after each epoch; a diverged or failed trial is FAIL. Everything else is in the user attributes.

    Args:
        folder: the study, finished or not.
        file: ``.db``, ``.sqlite`` or ``.sqlite3`` for SQLite, ``.journal`` or ``.log`` for a journal.

    Raises:
        InputError: if the file is there, or its suffix is none of these.
    """
    _check(file)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draft = file.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        with _storage(draft, file.suffix) as storage:
            exported = [_written(folder, arm, fold, storage) for arm, fold in _cells(folder)]
        # A link, unlike a rename, never takes the place of another file.
        file.hardlink_to(draft)
    except FileExistsError:
        raise InputError([_there(file)]) from None
    finally:
        draft.unlink(missing_ok=True)
    return exported


def _check(file: Path) -> None:
    problems = []
    if file.exists():
        problems.append(_there(file))
    if file.suffix not in SQLITE + JOURNAL:
        rule = f"the suffix tells the storage (got {file.suffix!r})"
        problems.append(Problem(str(file), rule, f"end it with one of {', '.join(SQLITE + JOURNAL)}"))
    if not file.parent.is_dir():
        problems.append(Problem(str(file), "its folder does not exist", "make it, or give another path"))
    if problems:
        raise InputError(problems)


def _there(file: Path) -> Problem:
    return Problem(str(file), "the file exists, and nothing is overwritten", "give a new one")


@contextlib.contextmanager
def _storage(path: Path, suffix: str) -> Iterator[BaseStorage]:
    if suffix in JOURNAL:
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    storage = RDBStorage(f"sqlite:///{path}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _cells(folder: StudyFolder) -> list[tuple[str, int]]:
    """Return every arm that was searched and each fold it was searched in, in the order of the study."""
    place = {name: n for n, name in enumerate(folder.resolved["order"])}
    found = {(row.arm, row.fold) for row in _searched(folder)}
    return sorted(found, key=lambda cell: (place.get(cell[0], len(place)), cell))


def _searched(folder: StudyFolder) -> Iterator[TrialRow]:
    return (row for final in folder.finals() for row in final.trials if row.phase == "search")


def _written(folder: StudyFolder, arm: str, fold: int, storage: BaseStorage) -> Exported:
    folds = {row.fold for row in _searched(folder)}
    name = f"{folder.row.name}/{arm}" + (f"/fold{fold}" if len(folds) > 1 else "")
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    minimised = CRITERIA[folder.row.task].name
    attributes = {"arm": arm, "fold": fold, "dataset": folder.row.dataset, "minimised": minimised}
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    space = folder.resolved["arms"][arm]["space"]
    curves = _curves(folder, arm, fold)
    rows = [row for row in _searched(folder) if (row.arm, row.fold) == (arm, fold)]
    rows.sort(key=lambda row: row.number or 0)
    study.add_trials([_trial(folder, row, space, curves.get(row.trial_id, {})) for row in rows])
    return Exported(name, len(rows))


def _curves(folder: StudyFolder, arm: str, fold: int) -> Curves:
    """Return the criterion after each epoch by trial."""
    criterion = CRITERIA[folder.row.task]
    found: Curves = {}
    for final in folder.finals():
        if not any((row.arm, row.fold, row.phase) == (arm, fold, "search") for row in final.trials):
            continue
        for row in folder.side(final, "curves").to_pylist():
            if row["name"] == f"validation/{criterion.metric}":
                found.setdefault(row["trial_id"], {})[row["epoch"]] = criterion.of(row["value"])
    return found


def _trial(
    folder: StudyFolder, row: TrialRow, space: Mapping[str, Any], curve: Mapping[int, float]
) -> FrozenTrial:
    criterion = CRITERIA[folder.row.task]
    distributions = {path: _distribution(dimension) for path, dimension in space.items()}
    value = criterion.in_metrics(row.metrics)
    state = STATES.get(row.status, TrialState.FAIL)
    if state is TrialState.COMPLETE and value is None:
        raise StudyError(
            f"{folder.root}: trial {row.trial_id} is complete without a finite {criterion.metric}"
        )
    trial = create_trial(
        state=state,
        value=None if state is TrialState.FAIL else value,
        params={path: _scalar(row.parameters[path], space[path]) for path in distributions},
        distributions=distributions,
        user_attrs=_attributes(row),
        intermediate_values={epoch: value for epoch, value in curve.items() if value == value},
    )
    trial.datetime_start, trial.datetime_complete = _local(row.started_at), _local(row.ended_at)
    return trial


def _attributes(row: TrialRow) -> dict[str, Any]:
    kept = ("trial_id", "number", "status", "epoch", "stopped_epoch", "seed", "pair_id", "cpu_s", "error")
    found = {name: getattr(row, name) for name in kept if getattr(row, name) is not None}
    return found | {name: value for name, value in row.metrics.items() if value == value}


def _local(time: datetime | None) -> datetime | None:
    """Return a time as Optuna keeps it: that of the clock on the wall, without a zone."""
    return None if time is None else time.astimezone().replace(tzinfo=None)


def _distribution(dimension: Mapping[str, Any]) -> BaseDistribution:
    if "choice" in dimension:
        return CategoricalDistribution([_plain(option) for option in dimension["choice"]])
    low, high, log = dimension["low"], dimension["high"], dimension["log"]
    if dimension["integer"]:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _scalar(value: Any, dimension: Mapping[str, Any]) -> Any:
    return _plain(value) if "choice" in dimension else value


def _plain(option: Any) -> Any:
    """Return an alternative as Optuna can store it: what is no scalar becomes JSON text."""
    return option if option is None or isinstance(option, bool | int | float | str) else json.dumps(option)
