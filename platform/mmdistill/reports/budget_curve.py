"""Score against budget: what the best of n trials of an arm's search is worth on validation.

Axes: K draws, N trials of one fold in the order of their loss, B budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.reports.budget import cpu_seconds, validation_loss
from mmdistill.reports.evidence import Trial
from mmdistill.reports.readings import Readings
from mmdistill.statistics import Array

_DRAWS = 2000
# A chart shows no more.
_MOST = 200
Places = npt.NDArray[np.int64]


class Expected(NamedTuple):
    """A value of the best of n trials.

    Attributes:
        mean: expected.
        low: lower end of the band that holds 90 % of the draws.
        high: upper end.
        observed: of the best among the first n trials as they were run.
    """

    mean: float
    low: float
    high: float
    observed: float


class BudgetPoint(NamedTuple):
    """What the best of n trials is worth on validation rows.

    Attributes:
        n: trials.
        loss: what the search ranks by, in nats or 1 - CCC.
        score: the study's score of the trial with the lowest loss.
    """

    n: int
    loss: Expected
    score: Expected


class BudgetCurve(NamedTuple):
    """The search of one arm as a curve over its budget.

    What is inferred: the best of n trials drawn at random, with replacement, from the arm's own ("expected
    validation performance", Dodge et al., 2019). So it says what n trials like these would find, not what
    another sampler or space would; for trials proposed by TPE or CMA-ES, which depend on those before, it
    describes this search alone. Near n = all trials it is biased towards worse values (Tang et al., 2020). A
    trial that did not complete costs budget and counts as the worst that did.

    Attributes:
        arm: the arm.
        points: from n = 1 to all trials, of the shortest search where each fold has its own; means over
            folds. Above 200 trials 200 of them, evenly apart in log(n).
        cpu_s: CPU seconds of the whole search with the teachers it used, over all folds.
        incomplete: trials that did not complete.
    """

    arm: str
    points: tuple[BudgetPoint, ...]
    cpu_s: float
    incomplete: int


def budget_curves(readings: Readings) -> tuple[BudgetCurve, ...]:
    """Return the curve of every arm whose search has a complete trial."""
    found = []
    for arm in readings.declared:
        search = [trial for trial in readings.trials.get(arm.name, ()) if trial["phase"] == "search"]
        folds = _folds(search, readings.study["task"], readings.study["score"])
        if folds:
            seed = derive_seed(readings.study["seed"], "budget curve", arm.name)
            incomplete = sum(trial["status"] != "complete" for trial in search)
            found.append(BudgetCurve(arm.name, _points(folds, seed), cpu_seconds(search), incomplete))
    return tuple(found)


class _Fold(NamedTuple):
    """The search in one fold: [loss, score] of its trials by rising loss, and ranks in the order they ran."""

    values_2N: Array
    rank_N: Places


def _folds(search: Sequence[Trial], task: str, score: str) -> list[_Fold]:
    """Return the folds, all cut to the shortest search; none if one has no complete trial."""
    by_fold: dict[int, list[tuple[float, float]]] = {}
    for trial in sorted(search, key=lambda trial: trial["number"] or 0):
        value = (trial["metrics"] or {}).get(score)
        pair = (validation_loss(trial, task), np.nan if value is None else float(value))
        by_fold.setdefault(trial["fold"], []).append(pair)
    shortest = min(map(len, by_fold.values()), default=0)
    cut = [np.array(found[:shortest]).T for found in by_fold.values()]
    if not cut or any(not np.isfinite(values_2N[0]).any() for values_2N in cut):
        return []
    return [_ranked(values_2N) for values_2N in cut]


def _ranked(values_2N: Array) -> _Fold:
    order = np.argsort(values_2N[0], kind="stable")
    sorted_2N = values_2N[:, order]
    complete = int(np.isfinite(sorted_2N[0]).sum())
    sorted_2N[:, complete:] = sorted_2N[:, [complete - 1]]
    return _Fold(sorted_2N, np.argsort(order, kind="stable"))


def _points(folds: Sequence[_Fold], seed: int) -> tuple[BudgetPoint, ...]:
    count = folds[0].rank_N.size
    budget_B = np.unique(np.geomspace(1, count, _MOST).round().astype(np.int64))
    if count <= _MOST:
        budget_B = np.arange(1, count + 1)
    chance_NB, drawn_KB = _best_is(count, budget_B), _best_drawn(len(folds), count, budget_B, seed)
    mean_2B = np.mean([fold.values_2N @ chance_NB for fold in folds], axis=0)
    draws_2KB = np.mean([fold.values_2N[:, rank] for fold, rank in zip(folds, drawn_KB, strict=True)], axis=0)
    low_2B, high_2B = np.quantile(draws_2KB, [0.05, 0.95], axis=1)
    best_N = [np.minimum.accumulate(fold.rank_N) for fold in folds]
    pairs = zip(folds, best_N, strict=True)
    observed_2B = np.mean([fold.values_2N[:, best[budget_B - 1]] for fold, best in pairs], axis=0)
    table_2B4 = np.stack([mean_2B, low_2B, high_2B, observed_2B], axis=-1).tolist()
    return tuple(
        BudgetPoint(n, Expected(*loss), Expected(*score))
        for n, loss, score in zip(budget_B.tolist(), *table_2B4, strict=True)
    )


def _best_is(count: int, budget_B: Places) -> Array:
    """Return the probability [N, B] that the best of n draws with replacement is the i-th best of N."""
    left_N1 = np.arange(count, -1, -1)[:, None] / count
    found: Array = -np.diff(left_N1**budget_B, axis=0)
    return found


def _best_drawn(folds: int, count: int, budget_B: Places, seed: int) -> list[Places]:
    """Return for each fold the rank [K, B] of the best of n draws with replacement.

    The least of n uniform numbers is 1 - U ** (1 / n); each draw has one U for all budgets.
    """
    generator = numpy_generator(seed, "draws")
    return [
        (count * (1 - generator.random((_DRAWS, 1)) ** (1 / budget_B))).astype(np.int64) for _ in range(folds)
    ]
