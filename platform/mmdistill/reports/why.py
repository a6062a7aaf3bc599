"""Where a number of the table comes from: the runs behind a cell, their settings, and what was left out."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmdistill.errors import Problem, UnknownNameError
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.registry import unknown_name
from mmdistill.reports.arms import arm_names
from mmdistill.reports.evidence import Arm, Trial
from mmdistill.reports.readings import Basis, Readings, readings_of
from mmdistill.settings import flattened
from mmdistill.statistics import Interval

_PROVENANCE = (
    "git_commit",
    "git_dirty",
    "data_fingerprint",
    "constraints_hash",
    "package_version",
    "python",
    "torch",
    "ray",
    "host",
    "cpu_count",
    "threads",
    "created_at",
    "command",
    "versions_json",
    "hardware_json",
)


# Of these, every attempt at an order has its own.
_CODE = ("git_commit", "git_dirty", "package_version", "python", "torch")


class Run(NamedTuple):
    """One run behind a cell.

    Attributes:
        trial_id: its key, which ``mmdistill rerun`` takes.
        value: of the metric.
        epoch: whose weights were kept, from 0.
        lanes: runs that trained together, this one included.
        opening: number of the opening that read it; None if none did.
        run_digest: identity of its settings.
    """

    trial_id: str
    pair_id: str
    fold: int
    seed_index: int | None
    seed: int
    value: float
    epoch: int | None
    lanes: int
    device: str
    host: str
    opening: int | None
    run_digest: str


class Excluded(NamedTuple):
    """A run that is not behind the cell, though its arm and its phase are."""

    trial_id: str
    phase: str
    pair_id: str
    status: str
    reason: str


class Why(NamedTuple):
    """What is behind one cell of the table.

    Attributes:
        aliases: names of the equal arms that were merged into it.
        interval: the cell.
        basis: ``test``, ``validation`` or ``search``.
        settings: what the runs have in common, by dotted path; without seed and fold.
        parameters: searched values, by fold where each has a winner of its own; of a frozen arm another's.
        proposals: numbers of the proposals that won, one per search.
        missing: pairs that other arms have and this one has not.
        provenance: of the newest revision of the study; code and versions are those that computed the runs, a
            list where they differ.
        rerun: the command that recomputes every run behind the cell.
    """

    study: str
    arm: str
    aliases: tuple[str, ...]
    metric: str
    interval: Interval
    replicate: str
    basis: Basis
    runs: tuple[Run, ...]
    excluded: tuple[Excluded, ...]
    missing: tuple[str, ...]
    settings: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    proposals: tuple[int, ...]
    frozen: str | None
    provenance: dict[str, Any]
    rerun: str


def why(root: Path, arm: str, metric: str | None = None) -> Why:
    """Return what is behind the cell of an arm.

    Args:
        root: folder of the study.
        arm: its name, or that of an equal arm that was merged into it.
        metric: by default the study's score.

    Raises:
        UnknownNameError: no arm or metric is called so.
    """
    tables = latest(StudyFolder.open(root))
    readings, arm = _readings(tables, arm, metric)
    declared = next(one for one in readings.declared if one.name == arm)
    behind = readings.arms.get(arm, Arm({}, None)).runs
    configs = _configs(tables["trials"], [run["trial_id"] for run in behind.values()])
    return Why(
        study=readings.study["name"],
        arm=arm,
        aliases=declared.aliases,
        metric=readings.study["score"],
        interval=readings.score(arm),
        replicate=readings.schemes[arm].replicate,
        basis=readings.basis,
        runs=tuple(_run(behind[pair], readings, tables["test_openings"]) for pair in sorted(behind)),
        excluded=tuple(_excluded(readings, arm, {run["trial_id"] for run in behind.values()})),
        missing=tuple(readings.missing(arm)),
        settings=_common(configs),
        parameters=_parameters(behind),
        proposals=tuple(sorted({run["number"] for run in behind.values() if run["number"] is not None})),
        frozen=declared.frozen,
        provenance=_provenance(readings.study) | made_with(tables["attempts"], behind.values()),
        rerun=shlex.join(["mmdistill", "rerun", str(root), "--arm", arm]),
    )


def runs_behind(root: Path, arm: str) -> list[str]:
    """Return the trials behind the score of an arm; errors as in :func:`why`."""
    readings, arm = _readings(latest(StudyFolder.open(root)), arm, None)
    behind = readings.arms.get(arm, Arm({}, None)).runs
    return [behind[pair]["trial_id"] for pair in sorted(behind)]


def _provenance(study: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: study[name] for name in _PROVENANCE if not name.endswith("_json")}
    texts = {name.removesuffix("_json"): study[name] for name in _PROVENANCE if name.endswith("_json")}
    # Studies of earlier versions have none.
    return plain | {name: json.loads(text) for name, text in texts.items() if text}


def made_with(attempts: pa.Table, behind: Iterable[Trial]) -> dict[str, Any]:
    """Return what computed some runs, of several versions all; nothing of studies of earlier versions."""
    orders = {run["order_id"] for run in behind}
    # The last attempt at an order is the one that computed it.
    last = {
        row["order_id"]: row for row in attempts.sort_by("attempt").to_pylist() if row["order_id"] in orders
    }
    found = {
        name: sorted({row[name] for row in last.values() if row.get(name) is not None}) for name in _CODE
    }
    return {name: values[0] if len(values) == 1 else values for name, values in found.items() if values}


def _readings(tables: Mapping[str, pa.Table], arm: str, metric: str | None) -> tuple[Readings, str]:
    """Return the readings, and the arm that a name leads to."""
    problems: list[Problem] = []
    try:
        readings = readings_of(tables, metric)
    except UnknownNameError as error:
        problems += error.problems
        readings = readings_of(tables)
    names = arm_names(readings.declared)
    if arm not in names:
        problems.append(unknown_name("arm", arm, "--arm", list(names)))
    if problems:
        raise UnknownNameError(problems)
    return readings, names[arm]


def _run(trial: Trial, readings: Readings, ledger: pa.Table) -> Run:
    openings = {row["trial_id"]: row["opening"] for row in ledger.to_pylist()}
    kept = {name: trial[name] for name in Run._fields if name in trial}
    value = trial["metrics"][readings.study["score"]]
    return Run(**kept, value=value, opening=openings.get(trial["trial_id"]))


def _excluded(readings: Readings, arm: str, behind: set[str]) -> list[Excluded]:
    phases = {"test": ("confirm", "test"), "validation": ("confirm",), "search": ("search",)}
    phase = phases[readings.basis]
    return [
        Excluded(run["trial_id"], run["phase"], run["pair_id"], run["status"], _reason(run))
        for run in readings.trials.get(arm, ())
        if run["phase"] in phase
        and run["trial_id"] not in behind
        # The confirmed run behind a test reading is that reading's own.
        and (run["phase"] == phase[-1] or run["status"] != "complete")
    ]


def _reason(run: Trial) -> str:
    if run["status"] != "complete":
        return str(run["error"] or run["status"])
    return "another trial of the search was better" if run["phase"] == "search" else "it has no such metric"


def _configs(trials: pa.Table, wanted: list[str]) -> list[dict[str, Any]]:
    rows = trials.select(["trial_id", "config_json"]).to_pylist()
    return [flattened(json.loads(row["config_json"])) for row in rows if row["trial_id"] in wanted]


def _common(configs: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = configs or [{}]
    return {
        path: value
        for path, value in first.items()
        if path not in ("seed", "fold") and all(other.get(path) == value for other in others)
    }


def _parameters(behind: Mapping[str, Trial]) -> dict[str, dict[str, Any]]:
    """Return the searched values by fold, under ``all folds`` where they are the same."""
    by_fold = {
        f"fold {run['fold']}": {
            path: value for path, value in (run["parameters"] or {}).items() if value is not None
        }
        for run in behind.values()
    }
    found = list(by_fold.values())
    return {"all folds": found[0]} if found and all(one == found[0] for one in found) else by_fold
