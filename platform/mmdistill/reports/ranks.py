"""Arms over several data sets: mean ranks, Friedman's test and Nemenyi's critical difference (Demsar, 2006).

Axes: D data sets, A arms, S studies on one data set.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmdistill.reports.alike import uneven, unlike
from mmdistill.reports.readings import Readings
from mmdistill.statistics import ALPHA, Array

FEWEST_DATA_SETS = 4
FEWEST_ARMS = 3
# Below that the chi-squared distribution of Friedman's statistic is rough (Demsar, 2006).
_STEADY = 10


class Ranks(NamedTuple):
    """How arms rank over data sets; a data set is one replicate, however many seeds it was run with.

    Attributes:
        arms: A names, best mean rank first.
        datasets: D names.
        scores: D rows of A mean scores, seeds averaged first; higher is better.
        studies: D rows of A tuples, the names of the studies whose runs are averaged in that score.
        mean_ranks: A numbers, 1 is best; ties share their ranks.
        friedman_p: of no difference among the arms; None where there are too few data sets or arms.
        critical_difference: mean ranks that differ by less are not told apart at .05 (Nemenyi); likewise.
        nemenyi: A x A adjusted p-values of every two arms; likewise.
        cliques: the largest groups of arms, neighbours in mean rank, that are not told apart, those of two
            or more; all arms where Friedman's test finds no difference.
        left_out: why an arm, a study or a data set does not count, by its name.
        cautions: why to doubt it.
        reason: why there is no test.
    """

    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    studies: tuple[tuple[tuple[str, ...], ...], ...]
    mean_ranks: tuple[float, ...]
    friedman_p: float | None
    critical_difference: float | None
    nemenyi: tuple[tuple[float, ...], ...] | None
    cliques: tuple[tuple[str, ...], ...]
    left_out: Mapping[str, str]
    cautions: tuple[str, ...]
    reason: str | None


def ranks(studies: Sequence[Readings]) -> Ranks:
    """Return the ranks of the arms that were tested on every data set.

    Args:
        studies: one per data set. The runs of several on the same data (equal fingerprint) are averaged into
            one, since they are no independent replicates; where their settings differ they cannot be, and
            the data set is left out.
    """
    tested = [study for study in studies if study.basis == "test"]
    left_out = {
        f"study {study.study['name']}": "its test split was not opened yet"
        for study in studies
        if study.basis != "test"
    }
    by_data: dict[str, list[Readings]] = {}
    for study in tested:
        by_data.setdefault(study.study["data_fingerprint"], []).append(study)
    kept: dict[str, list[Readings]] = {}
    for name, same in zip(_names(list(by_data.values())), by_data.values(), strict=True):
        why = unlike(same)
        if why:
            left_out[f"data set {name}"] = why
        else:
            kept[name] = same
    arms, missing = _shared_arms(kept)
    score_DA = np.array([[_mean_score(same, arm) for arm in arms] for same in kept.values()])
    score_DA = score_DA.reshape(len(kept), len(arms))
    rank_A = stats.rankdata(-score_DA, axis=1).mean(axis=0) if kept else np.zeros(0)
    order = np.argsort(rank_A, kind="stable")
    ordered = [arms[i] for i in order]
    found = _tested(ordered, list(kept), score_DA[:, order], rank_A[order])
    return found._replace(
        studies=tuple(tuple(_behind(same, arm) for arm in ordered) for same in kept.values()),
        left_out=left_out | missing,
        cautions=(*found.cautions, *uneven(kept, ordered)),
    )


def _shared_arms(by_name: Mapping[str, Sequence[Readings]]) -> tuple[list[str], dict[str, str]]:
    """Return the arms that every data set has a score of, and why each other one is left out."""
    found: dict[str, list[str]] = {}
    frozen = set[str]()
    for dataset, same in by_name.items():
        frozen |= {arm.name for study in same for arm in study.declared if arm.frozen}
        for name in dict.fromkeys(arm.name for study in same for arm in study.declared):
            if _behind(same, name):
                found.setdefault(name, []).append(dataset)
    shared = [name for name, where in found.items() if len(where) == len(by_name) and name not in frozen]
    missing = {
        name: "frozen: biased towards another arm" if name in frozen else f"only on {', '.join(where)}"
        for name, where in found.items()
        if name not in shared
    }
    return shared, missing


def _behind(same: Sequence[Readings], arm: str) -> tuple[str, ...]:
    """Return the names of the studies that read an arm; a copy of a study counts with it."""
    return tuple(dict.fromkeys(study.study["name"] for study in same if arm in study.arms))


def _names(groups: Sequence[Sequence[Readings]]) -> list[str]:
    """Return a name per data set; those of its studies where two data sets have the same."""
    plain = [same[0].study["dataset"] for same in groups]
    return [
        name if plain.count(name) == 1 else ", ".join(study.study["name"] for study in same)
        for name, same in zip(plain, groups, strict=True)
    ]


def _mean_score(same: Sequence[Readings], arm: str) -> float:
    """Return the mean score over the studies that read an arm, weighted by their runs."""
    read = [study for study in same if arm in study.arms]
    runs_S = [len(study.arms[arm].runs) for study in read]
    return float(np.average([study.score(arm).mean for study in read], weights=runs_S))


def _tested(arms: Sequence[str], datasets: Sequence[str], score_DA: Array, rank_A: Array) -> Ranks:
    untested = Ranks(
        arms=tuple(arms),
        datasets=tuple(datasets),
        scores=tuple(tuple(row) for row in score_DA.tolist()),
        studies=(),
        mean_ranks=tuple(rank_A.tolist()),
        friedman_p=None,
        critical_difference=None,
        nemenyi=None,
        cliques=(),
        left_out={},
        cautions=(),
        reason=_too_few(len(datasets), len(arms)),
    )
    if untested.reason:
        return untested
    p = _friedman(score_DA)
    cd = critical_difference(len(arms), len(datasets))
    rough = f"{len(datasets)} data sets are few: Friedman's and Nemenyi's p-values are rough below {_STEADY}"
    return untested._replace(
        friedman_p=p,
        critical_difference=cd,
        nemenyi=_nemenyi(score_DA),
        cliques=tuple(_cliques(arms, rank_A, cd)) if p < ALPHA else (tuple(arms),),
        cautions=(rough,) if len(datasets) < _STEADY else (),
    )


def _too_few(datasets: int, arms: int) -> str | None:
    if datasets < FEWEST_DATA_SETS:
        return (
            f"{datasets} data set(s) are too few to compare arms over data sets, which takes "
            f"{FEWEST_DATA_SETS} at least"
        )
    if arms < FEWEST_ARMS:
        return f"the studies share {arms} arm(s), and Friedman's test needs {FEWEST_ARMS}"
    return None


def _friedman(score_DA: Array) -> float:
    # Undefined where all arms tie everywhere: nothing differs.
    if not np.ptp(score_DA, axis=1).any():
        return 1.0
    return float(stats.friedmanchisquare(*score_DA.T).pvalue)


def critical_difference(arms: int, datasets: int, *, level: float = ALPHA) -> float:
    """Return how far apart two mean ranks must be to differ (Nemenyi; Demsar, 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(1 - level, arms, math.inf)) / math.sqrt(2)
    return q * math.sqrt(arms * (arms + 1) / (6 * datasets))


def _nemenyi(score_DA: Array) -> tuple[tuple[float, ...], ...]:
    # It brings pandas and statsmodels, which `mmdistill table` must not wait for.
    from scikit_posthocs import posthoc_nemenyi_friedman

    p_AA: Array = posthoc_nemenyi_friedman(score_DA).to_numpy(dtype=np.float64)
    return tuple(tuple(row) for row in p_AA.tolist())


def _cliques(arms: Sequence[str], rank_A: Array, cd: float) -> list[tuple[str, ...]]:
    """Return every group of neighbours within one critical difference that lies in no larger one."""
    found: list[tuple[str, ...]] = []
    reached = 0
    for first in range(len(arms)):
        last = int(np.searchsorted(rank_A, rank_A[first] + cd))
        if last > reached and last - first > 1:
            found.append(tuple(arms[first:last]))
        reached = max(reached, last)
    return found
