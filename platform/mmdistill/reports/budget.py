"""What an arm was given and what it cost: every arm has the same right to be tuned."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from mmdistill.records.criterion import CRITERIA
from mmdistill.reports.evidence import Trial

_POINTS = (4, 8, 16, 32, 64)
_PAID = ("search", "validate", "confirm")


class Budget(NamedTuple):
    """The search of one arm.

    Attributes:
        trials: proposals that ended, whatever their outcome.
        dimensions: searched hyperparameters.
        cpu_s: CPU seconds of search, validation and confirmation, see :func:`cpu_seconds`.
        pruned: search trials stopped early.
        diverged: runs that diverged, in any phase; a confirmed run and its test reading are one.
        failed: runs that failed, counted likewise.
        best_of: lowest validation loss among the first n trials, as (n, loss), in nats or 1 - CCC; the mean
            over folds where each fold has a search of its own.
        still_improving: whether the last quarter of the trials holds the best; None without a complete trial.
    """

    trials: int
    dimensions: int
    cpu_s: float
    pruned: int
    diverged: int
    failed: int
    best_of: tuple[tuple[int, float], ...]
    still_improving: bool | None


def budget_of(trials: Sequence[Trial], dimensions: int, task: str) -> Budget:
    """Return the budget of one arm from all its rows in ``trials``."""
    search = [trial for trial in trials if trial["phase"] == "search"]
    curves = _curves(search, task)
    return Budget(
        trials=len(search),
        dimensions=dimensions,
        cpu_s=cpu_seconds(trials),
        pruned=sum(trial["status"] == "pruned" for trial in search),
        diverged=_ended(trials, "diverged"),
        failed=_ended(trials, "failed"),
        best_of=_best_of(curves),
        still_improving=_still_improving(curves),
    )


def cpu_seconds(trials: Sequence[Trial]) -> float:
    """Return the CPU seconds of an arm with the teachers it used.

    The sum of the runs' own ``cpu_s`` over search, validation and confirmation, plus, once per (phase, seed,
    fold, set of teachers), the full price ``stage_cpu_s`` of the shared stages below them: what the arm would
    cost alone. Where the set itself is searched, a teacher in two sets is counted in both: an upper bound.
    """
    paid = [trial for trial in trials if trial["phase"] in _PAID]
    shared: dict[tuple[Any, ...], float] = {}
    for trial in paid:
        key = (trial["phase"], trial["seed_index"], trial["fold"], *(trial["teachers"] or ()))
        shared[key] = max(shared.get(key, 0.0), trial["stage_cpu_s"] or 0.0)
    return float(sum(trial["cpu_s"] or 0.0 for trial in paid) + sum(shared.values()))


def _ended(trials: Sequence[Trial], status: Literal["diverged", "failed"]) -> int:
    """Return how many runs ended so; the test reading of a confirmed run is not another run."""
    return len(
        {
            ("repeat", trial["pair_id"]) if trial["phase"] in ("confirm", "test") else trial["trial_id"]
            for trial in trials
            if trial["status"] == status
        }
    )


def _curves(search: Sequence[Trial], task: str) -> list[list[float]]:
    """Return the validation losses in the order of the proposals, one list per fold."""
    folds: dict[int, list[float]] = {}
    for trial in sorted(search, key=lambda trial: trial["number"] or 0):
        folds.setdefault(trial["fold"], []).append(validation_loss(trial, task))
    return list(folds.values())


def validation_loss(trial: Trial, task: str) -> float:
    """Return what the search ranks by; infinite for a run that did not complete."""
    value = CRITERIA[task].in_metrics(trial["metrics"]) if trial["status"] == "complete" else None
    return math.inf if value is None else value


def _best_of(curves: Sequence[Sequence[float]]) -> tuple[tuple[int, float], ...]:
    shortest = min((len(curve) for curve in curves), default=0)
    points = [*(n for n in _POINTS if n < shortest), *([shortest] if shortest else [])]
    return tuple((n, sum(min(curve[:n]) for curve in curves) / len(curves)) for n in points)


def _still_improving(curves: Sequence[Sequence[float]]) -> bool | None:
    if not any(math.isfinite(loss) for curve in curves for loss in curve):
        return None
    return any(min(curve) < min(curve[: -math.ceil(len(curve) / 4)], default=math.inf) for curve in curves)
