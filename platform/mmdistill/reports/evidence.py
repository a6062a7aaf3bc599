"""What the records say about one arm and about two arms side by side.

Axes: A arms, C contrasts, N prediction rows, P pairs, R runs, S seeds, U test units, Q moments
(:mod:`mmdistill.statistics`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.statistics import (
    Array,
    Interval,
    Score,
    concordance,
    corrected_resampled_t,
    crossed_contrasts_bootstrap,
    ratio,
    sign_flip_test,
    t_interval,
)

Trial = Mapping[str, Any]
_NONE = Interval(float("nan"), float("nan"), float("nan"), 0)
_UNKNOWN: Array = np.zeros((0, 0))
# Scores that are a function of sums over rows, so that predictions can be resampled.
_SCORES: dict[str, Score] = {"accuracy": ratio, "ccc": concordance}


class Scheme(NamedTuple):
    """What counts as one replicate; decided once for all arms that share pairs, never seeds x folds.

    Attributes:
        replicate: ``seeds`` with one fold; ``subjects`` where folds keep groups whole: seeds averaged within
            a group; else ``folds``: seeds averaged within a fold.
        test_share: test rows per training row, for the corrected t of overlapping folds; else 0.
        unit: what is resampled, ``rows`` or ``groups``.
    """

    replicate: Literal["seeds", "folds", "subjects"]
    test_share: float
    unit: Literal["rows", "groups"]


class Cells(NamedTuple):
    """The predictions of one arm, summed per run and test unit."""

    run_of_pair: Mapping[str, int]
    moments_RUQ: Array


class Arm(NamedTuple):
    """The results of one arm: its usable runs by pair, and their cells where predictions were kept."""

    runs: Mapping[str, Trial]
    cells: Cells | None


class Paired(NamedTuple):
    """The paired difference of two arms (first minus second), before any adjustment for their number.

    Attributes:
        seeds: 95 % interval over replicates.
        crossed: 95 % interval over seeds x test units.
        seeds_90: as ``seeds``, for the equivalence test.
        crossed_90: as ``crossed``, for the equivalence test.
        p: sign-flip test over replicates, exact up to n = 16, Student's t beyond; of folds the corrected
            resampled t test.
        missing: pairs that only one of the two has.
        scheme: what counts as one replicate.
    """

    seeds: Interval
    crossed: Interval
    seeds_90: Interval
    crossed_90: Interval
    p: float
    missing: tuple[str, ...]
    scheme: Scheme


def scheme_of(trials: Sequence[Trial], predictions: pa.Table, *, score: str, has_holdout: bool) -> Scheme:
    """Return what counts as one replicate among the runs of arms that share pairs.

    Args:
        trials: the runs.
        predictions: theirs; a unit of several rows is a group.
        score: a concordance has no value of its own for a few rows of a subject, so where folds test several
            subjects at once the folds are compared.
        has_holdout: whether rows are kept for tuning; no fold gives rows to validation then.
    """
    folds = {trial["fold"] for trial in trials}
    # A unit of its own for every row is no group, whatever it is called.
    rows, units = (pc.count_distinct(predictions[name]).as_py() for name in ("row", "unit"))
    grouped = units < rows
    unit: Literal["rows", "groups"] = "groups" if grouped else "rows"
    if len(folds) < 2:
        return Scheme("seeds", 0.0, unit)
    cells = set(zip(predictions["fold"].to_pylist(), predictions["unit"].to_pylist(), strict=True))
    one_each = len(cells) == len(folds) == len({unit for _, unit in cells})
    if one_each or (grouped and score == "accuracy"):
        return Scheme("subjects", 0.0, unit)
    return over_folds(len(folds), unit, has_holdout=has_holdout)


def over_folds(k: int, unit: Literal["rows", "groups"], *, has_holdout: bool) -> Scheme:
    """Return the scheme in which each of ``k`` folds, at least 2, is one replicate."""
    # One of k folds is tested. Nested, a k-th of the rest is validation; a holdout for tuning spares that.
    return Scheme("folds", 1 / (k - 1) if has_holdout else k / (k - 1) ** 2, unit)


def mean_interval(arm: Arm, *, score: str, scheme: Scheme) -> Interval:
    """Return the mean ``score`` of an arm with its 95 % interval over replicates."""
    (values_N,) = replicates([arm], sorted(arm.runs), score=score, scheme=scheme)
    return t_interval(values_N, test_share=scheme.test_share)


def replicates(arms: Sequence[Arm], pairs: Sequence[str], *, score: str, scheme: Scheme) -> Array:
    """Return the score of each arm on each replicate of some pairs, [A, N].

    Where subjects are the replicates, N is 0 if an arm lacks predictions.

    Args:
        arms: at least one, of one scheme.
        pairs: that all of them finished.
        score: the metric.
        scheme: what counts as one replicate.
    """
    if scheme.replicate != "subjects":
        found = [{pair: arm.runs[pair]["metrics"][score] for pair in pairs} for arm in arms]
        return np.stack([per_replicate(values, arm, scheme) for values, arm in zip(found, arms, strict=True)])
    by_arm = [_by_subject(arm, pairs, score) for arm in arms]
    if len({value_SU.shape for value_SU in by_arm}) > 1:
        return np.zeros((len(arms), 0))
    value_ASU = np.stack(by_arm)
    # A seed counts for a subject where every arm tested it.
    value_ASU[:, np.isnan(value_ASU).any(axis=0)] = np.nan
    return np.stack([_averaged(value_SU) for value_SU in value_ASU])


def paired(arm: Arm, against: Arm, *, score: str, scheme: Scheme, seed: int) -> Paired:
    """Return what the pairs that both arms finished say about their difference in ``score``."""
    return contrasted([arm, against], [[1, -1]], score=score, scheme=scheme, seed=seed)[0]


def contrasted(
    arms: Sequence[Arm], weight_CA: npt.ArrayLike, *, score: str, scheme: Scheme, seed: int
) -> list[Paired]:
    """Return what the pairs that all arms finished say about weighted sums of their scores.

    Args:
        arms: at least one, of one scheme.
        weight_CA: one contrast per row; the weights of a contrast add up to 0.
        score: the metric.
        scheme: what counts as one replicate.
        seed: of the resampling; equal seeds share their resamples.
    """
    weights_CA = np.asarray(weight_CA, dtype=np.float64)
    runs = [arm.runs.keys() for arm in arms]
    pairs = sorted(set.intersection(*map(set, runs)))
    missing = tuple(sorted(set.union(*map(set, runs)) - set(pairs)))
    if scheme.replicate == "subjects":
        value_ASU = [_by_subject(arm, pairs, score) for arm in arms]
        is_known = len({value_SU.shape for value_SU in value_ASU}) == 1
        sums_CSU = (
            np.tensordot(weights_CA, np.stack(value_ASU), 1) if is_known else [_UNKNOWN] * len(weights_CA)
        )
        values_CN = [_averaged(sum_SU) for sum_SU in sums_CSU]
        drawn_C = [_crossed_subjects(sum_SU, seed) for sum_SU in sums_CSU]
    else:
        value_AP = np.array([[arm.runs[pair]["metrics"][score] for pair in pairs] for arm in arms])
        values_CN = [
            per_replicate(dict(zip(pairs, sum_P, strict=True)), arms[0], scheme)
            for sum_P in weights_CA @ value_AP
        ]
        drawn_C = _crossed(arms, weights_CA, pairs, score, seed)
    return [
        _paired(values_N, *drawn, missing, scheme) for values_N, drawn in zip(values_CN, drawn_C, strict=True)
    ]


def _paired(
    values_N: Array, crossed: Interval, crossed_90: Interval, missing: tuple[str, ...], scheme: Scheme
) -> Paired:
    wide, p = corrected_resampled_t(values_N, scheme.test_share)
    narrow, _ = corrected_resampled_t(values_N, scheme.test_share, level=0.90)
    if scheme.replicate != "folds":
        p = sign_flip_test(values_N) if len(values_N) else float("nan")
    return Paired(wide, crossed, narrow, crossed_90, p, missing, scheme)


def per_replicate(values: Mapping[str, float], arm: Arm, scheme: Scheme) -> Array:
    """Return one value per seed, or per fold where folds are the replicates, from one value per pair.

    Args:
        values: one number per pair; each pair is among the runs of ``arm``.
        arm: tells the fold of a pair.
        scheme: that of the arm.

    Raises:
        ValueError: subjects are the replicates; a pair has no value of one subject.
    """
    if scheme.replicate == "subjects":
        raise ValueError("a value per pair has no value per subject: take the scheme over folds")
    if scheme.replicate == "seeds":
        return np.array(list(values.values()))
    by_fold: dict[int, list[float]] = {}
    for pair, value in values.items():
        by_fold.setdefault(arm.runs[pair]["fold"], []).append(value)
    return np.array([np.mean(by_fold[fold]) for fold in sorted(by_fold)])


def _by_subject(arm: Arm, pairs: Sequence[str], score: str) -> Array:
    """Return the score of each seed on each subject [S, U], NaN where no run of these pairs tested it."""
    moments_RUQ = _moments(arm, pairs)
    if moments_RUQ is None:
        return _UNKNOWN
    seed_R, seeds = _seeds_of(arm, pairs)
    value_SU = np.full((seeds, moments_RUQ.shape[1]), np.nan)
    for moments_UQ, s in zip(moments_RUQ, seed_R, strict=True):
        tested_U = moments_UQ[:, 0] > 0
        value_SU[s, tested_U] = _SCORES[score](moments_UQ[tested_U])
    return value_SU


def _seeds_of(arm: Arm, pairs: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    """Return the seed of each pair as 0 .. S - 1 and S."""
    found, seed_R = np.unique([arm.runs[pair]["seed_index"] or 0 for pair in pairs], return_inverse=True)
    return seed_R.astype(np.int64), found.size


def _averaged(value_SU: Array) -> Array:
    """Return the mean over seeds of each subject that has any."""
    known_U = ~np.isnan(value_SU).all(axis=0)
    return np.asarray(np.nanmean(value_SU[:, known_U], axis=0)) if known_U.any() else np.zeros(0)


def _crossed_subjects(sum_SU: Array, seed: int) -> tuple[Interval, Interval]:
    known_SU = ~np.isnan(sum_SU)
    moments_SUQ = np.stack([known_SU, np.where(known_SU, sum_SU, 0)], axis=-1).astype(np.float64)
    moments_RUQ = moments_SUQ[:, known_SU.any(axis=0)]
    seed_R = np.arange(len(moments_RUQ))
    if len(moments_RUQ) == 1:
        # With one seed each subject is a run of its own: there is nothing but subjects to resample.
        moments_RUQ = np.eye(moments_RUQ.shape[1])[:, :, None] * moments_RUQ
        seed_R = np.zeros(len(moments_RUQ), dtype=np.int64)
    (drawn,) = crossed_contrasts_bootstrap(moments_RUQ[None], [[1]], seed_R, ratio, seed=seed)
    return drawn.interval(0.95), drawn.interval(0.90)


def _crossed(
    arms: Sequence[Arm], weights_CA: Array, pairs: Sequence[str], score: str, seed: int
) -> list[tuple[Interval, Interval]]:
    found = [_moments(arm, pairs) for arm in arms]
    moments = [moments_RUQ for moments_RUQ in found if moments_RUQ is not None]
    if len(moments) < len(arms) or any(not _same_rows(one, moments[0]) for one in moments[1:]):
        return [(_NONE, _NONE)] * len(weights_CA)
    seed_R, _ = _seeds_of(arms[0], pairs)
    drawn_C = crossed_contrasts_bootstrap(np.stack(moments), weights_CA, seed_R, _SCORES[score], seed=seed)
    return [(drawn.interval(0.95), drawn.interval(0.90)) for drawn in drawn_C]


def _same_rows(moments_RUQ: Array, other_RUQ: Array) -> bool:
    return np.array_equal(moments_RUQ[..., 0], other_RUQ[..., 0])


def _moments(arm: Arm, pairs: Sequence[str]) -> Array | None:
    if not pairs or arm.cells is None or any(pair not in arm.cells.run_of_pair for pair in pairs):
        return None
    return arm.cells.moments_RUQ[[arm.cells.run_of_pair[pair] for pair in pairs]]


def cells_by_arm(predictions: pa.Table, score: str) -> dict[str, Cells]:
    """Return the moments of every arm's runs, over one common list of units.

    Args:
        predictions: rows of the runs to compare, any order.
        score: ``accuracy`` or ``ccc``; of another score there are no moments, and no crossed interval.
    """
    if score not in _SCORES or not predictions.num_rows:
        return {}
    moments_NQ = (_hits if score == "accuracy" else _products)(predictions)
    unit_N, units = codes(predictions["unit"])
    arm_N, arms = codes(predictions["arm"])
    pair_N, pairs = codes(predictions["pair_id"])
    return {
        name: _summed(moments_NQ[here], unit_N[here], pair_N[here], len(units), pairs)
        for number, name in enumerate(arms)
        for here in [arm_N == number]
    }


def _summed(
    moments_NQ: Array,
    unit_N: npt.NDArray[np.int64],
    pair_N: npt.NDArray[np.int64],
    units: int,
    pairs: Sequence[str],
) -> Cells:
    found, run_N = np.unique(pair_N, return_inverse=True)
    cell_N = run_N * units + unit_N
    sums = [np.bincount(cell_N, column, minlength=found.size * units) for column in moments_NQ.T]
    moments_RUQ = np.stack(sums, axis=-1).astype(np.float64).reshape(found.size, units, -1)
    return Cells({pairs[code]: run for run, code in enumerate(found)}, moments_RUQ)


def codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return numbers for texts and the texts, sorted: what is resampled must not hang on the rows' order."""
    encoded = column.combine_chunks().dictionary_encode()
    names, rank = np.unique(np.asarray(encoded.dictionary.to_pylist(), dtype=object), return_inverse=True)
    return rank[encoded.indices.to_numpy(zero_copy_only=False)].astype(np.int64), names.tolist()


def _hits(predictions: pa.Table) -> Array:
    """Return for each row 1 and whether the most probable class is the label."""
    probability_NC = matrix(predictions["outputs"], predictions.num_rows)
    hit_N = probability_NC.argmax(axis=1) == predictions["label"].to_numpy()
    return np.stack([np.ones(hit_N.size), hit_N.astype(np.float64)], axis=1)


def _products(predictions: pa.Table) -> Array:
    """Return for each row 1 and, per target, x, y, x*x, y*y, x*y, both centred by the mean truth."""
    x_NC = matrix(predictions["outputs"], predictions.num_rows)
    truth = predictions["targets"] if len(pc.list_flatten(predictions["targets"])) else predictions["label"]
    y_NC = matrix(truth, predictions.num_rows)
    centre_C = y_NC.mean(axis=0)
    x_NC, y_NC = x_NC - centre_C, y_NC - centre_C
    products_NCQ = np.stack([x_NC, y_NC, x_NC * x_NC, y_NC * y_NC, x_NC * y_NC], axis=-1)
    return np.concatenate([np.ones((len(x_NC), 1)), products_NCQ.reshape(len(x_NC), -1)], axis=1)


def matrix(column: pa.ChunkedArray, rows: int) -> Array:
    """Return a column of lists of one length, or of numbers, as a matrix with a line per row."""
    flat = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    values: Array = flat.to_numpy().reshape(rows, -1)
    return values
