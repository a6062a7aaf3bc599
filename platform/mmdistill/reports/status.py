"""How far a study has come."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.arms import Declared, declared_arms


class ArmStatus(NamedTuple):
    """How far one arm has come.

    Attributes:
        counts: finished runs by phase, then by status.
        done: share of its planned search, confirmation and test runs that ended, 0 to 1.
        cpu_s: CPU seconds of its runs, without shared stages.
    """

    name: str
    counts: Mapping[str, Mapping[str, int]]
    done: float
    cpu_s: float


class Attempt(NamedTuple):
    """An attempt without an end: running now, or killed."""

    order_id: str
    number: int
    host: str
    pid: int


class Status(NamedTuple):
    """How far a study has come.

    Attributes:
        done: mean over the arms, 0 to 1.
        open_attempts: of orders without a result; empty when nothing runs and nothing was killed.
        seconds: wall time between the first start and the last end of an attempt; 0 before the first end.
        cpu_s: CPU seconds of all runs and of all stages that were computed.
    """

    study: str
    done: float
    arms: tuple[ArmStatus, ...]
    open_attempts: tuple[Attempt, ...]
    orders: int
    seconds: float
    cpu_s: float


def status(root: Path) -> Status:
    """Return how far the study in ``root`` has come.

    Raises:
        InputError: there is no study in ``root``.
        StudyError: a record is damaged.
    """
    folder = StudyFolder.open(root)
    return status_of_tables(latest(folder), folder.final_ids())


def status_of_tables(tables: Mapping[str, pa.Table], finished: set[str]) -> Status:
    """Return the status from the tables and the finished orders."""
    study: dict[str, Any] = tables["studies"].to_pylist()[-1]
    columns = ["arm", "phase", "status", "cpu_s"]
    trials = tables["trials"].select(columns).to_pylist()
    declared = declared_arms(study, {trial["arm"] for trial in trials})
    arms = [
        _arm(
            arm.name,
            [trial for trial in trials if trial["arm"] == arm.name],
            _expected(arm),
        )
        for arm in declared
    ]
    attempts = tables["attempts"].to_pylist()
    return Status(
        study=study["name"],
        done=sum(arm.done for arm in arms) / len(arms) if arms else 0.0,
        arms=tuple(arms),
        open_attempts=tuple(_open(attempts, finished)),
        orders=len(finished),
        seconds=_seconds(attempts),
        cpu_s=sum(arm.cpu_s for arm in arms) + _stage_seconds(tables["stages"]),
    )


def _expected(arm: Declared) -> dict[str, int]:
    """Return the planned runs of an arm by phase; validation is left out, for a race may shorten it."""
    return {phase: (arm.planned or {}).get(phase, 0) for phase in ("search", "confirm", "test")}


def _arm(name: str, trials: list[dict[str, Any]], expected: Mapping[str, int]) -> ArmStatus:
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        counts.setdefault(trial["phase"], Counter())[trial["status"]] += 1
    ended = sum(min(counts.get(phase, Counter()).total(), number) for phase, number in expected.items())
    done = ended / sum(expected.values()) if any(expected.values()) else 0.0
    cpu_s = sum(trial["cpu_s"] or 0.0 for trial in trials)
    return ArmStatus(name, {phase: dict(found) for phase, found in counts.items()}, done, cpu_s)


def _open(attempts: list[dict[str, Any]], finished: set[str]) -> list[Attempt]:
    return [
        Attempt(attempt["order_id"], attempt["attempt"], attempt["host"], attempt["pid"])
        for attempt in attempts
        if attempt["ended_at"] is None and attempt["order_id"] not in finished
    ]


def _seconds(attempts: list[dict[str, Any]]) -> float:
    ends = [attempt["ended_at"] for attempt in attempts if attempt["ended_at"] is not None]
    if not ends:
        return 0.0
    began = min(attempt["started_at"] for attempt in attempts)
    return float((max(ends) - began).total_seconds())


def _stage_seconds(stages: pa.Table) -> float:
    """Return what the computed shared stages cost; a student's own cost is that of its run."""
    rows = stages.select(["stage", "cache_hit", "cpu_s"]).to_pylist()
    return float(
        sum(row["cpu_s"] or 0.0 for row in rows if not row["cache_hit"] and row["stage"] != "student")
    )
