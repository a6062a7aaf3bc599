"""Which rows, classes and groups an arm turns from right to wrong, and back, whatever the seed.

Axes: N rows of predictions, P pairs, R rows of data, S slices (classes or groups).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from mmdistill.reports.evidence import codes, matrix
from mmdistill.reports.readings import Readings
from mmdistill.statistics import Array

SHARE = 0.8
# Names of rows that are kept of each direction; the counts are of all.
MOST_NAMES = 50


class Turned(NamedTuple):
    """Rows that changed in one direction.

    Attributes:
        rows: how many.
        names: of those that did so in most pairs, at most 50.
    """

    rows: int
    names: tuple[str, ...]


class Slice(NamedTuple):
    """A class or a group of rows.

    Attributes:
        name: the class's index, or the group.
        rows: how many of its rows were tested.
        harmed: how many of these turned to wrong.
        rescued: how many turned to right.
        worse: share of pairs in which its mean error grew, 0 to 1.
        better: share of pairs in which it fell.
    """

    name: str
    rows: int
    harmed: int
    rescued: int
    worse: float
    better: float

    @property
    def is_harmed(self) -> bool:
        """Return whether its mean error grew in at least 80 % of the pairs."""
        return self.worse >= SHARE

    @property
    def is_rescued(self) -> bool:
        """Return whether its mean error fell in at least 80 % of the pairs."""
        return self.better >= SHARE


class HarmSet(NamedTuple):
    """What an arm does to single rows against its baseline.

    A row turns to wrong where, in at least 80 % of the pairs that tested it, the baseline is right and the
    arm is wrong; in regression, where its absolute error (mean over targets) grew. ``expected`` is how many
    would do so if in every pair the names of the two arms were drawn at random: a row that differs in d
    pairs then turns with the probability that Binomial(d, 1/2) reaches the 80 %. It is the same for both
    directions.

    Attributes:
        pairs: that both arms finished, with predictions.
        rows: tested by both.
        classes: all; none in regression.
        groups: all; none where every row is its own.
        expected: rows of each direction under chance.
        expected_classes: harmed classes under chance, and as many rescued ones.
        expected_groups: the same of groups.
    """

    arm: str
    against: str
    pairs: int
    rows: int
    harmed: Turned
    rescued: Turned
    expected: float
    classes: tuple[Slice, ...]
    groups: tuple[Slice, ...]
    expected_classes: float
    expected_groups: float


class _Errors(NamedTuple):
    """The errors of all runs, and what there is to know of a row.

    Attributes:
        by_arm: errors of an arm [P, R], NaN where a run did not test a row; in the order of ``pairs``.
        label_R: class index; of regression nothing.
    """

    pairs: tuple[str, ...]
    rows: tuple[str, ...]
    by_arm: Mapping[str, Array]
    unit_R: npt.NDArray[np.int64]
    units: tuple[str, ...]
    label_R: npt.NDArray[np.int64] | None


def harm_sets(readings: Readings) -> tuple[HarmSet, ...]:
    """Return the harm set of each arm with a baseline, where both kept their predictions."""
    if readings.predictions is None:
        return ()
    errors = _errors(readings.predictions, is_classification=readings.study["task"] == "classification")
    asked = [(arm.name, arm.baseline) for arm in readings.declared if arm.baseline]
    found = [
        _harm_set(errors, arm, against) for arm, against in asked if {arm, against} <= set(errors.by_arm)
    ]
    return tuple(one for one in found if one.pairs)


def _errors(kept: pa.Table, *, is_classification: bool) -> _Errors:
    (arm_N, arms), (pair_N, pairs), (row_N, rows), (unit_N, units) = (
        codes(kept[name]) for name in ("arm", "pair_id", "row", "unit")
    )
    error_N = _error(kept, is_classification=is_classification) if len(kept) else np.zeros(0)
    error_APR = np.full((len(arms), len(pairs), len(rows)), np.nan)
    error_APR[arm_N, pair_N, row_N] = error_N
    unit_R = np.zeros(len(rows), dtype=np.int64)
    unit_R[row_N] = unit_N
    label_R = np.zeros(len(rows), dtype=np.int64)
    if is_classification:
        label_R[row_N] = kept["label"].to_numpy()
    return _Errors(
        pairs=tuple(pairs),
        rows=tuple(rows),
        by_arm=dict(zip(arms, error_APR, strict=True)),
        unit_R=unit_R,
        units=tuple(units),
        label_R=label_R if is_classification else None,
    )


def _error(predictions: pa.Table, *, is_classification: bool) -> Array:
    """Return for each row 1 where it is wrong, else 0; in regression the mean absolute error over targets."""
    outputs_NC = matrix(predictions["outputs"], predictions.num_rows)
    if is_classification:
        return np.asarray(outputs_NC.argmax(axis=1) != predictions["label"].to_numpy(), dtype=np.float64)
    has_targets = len(pc.list_flatten(predictions["targets"]))
    truth_NC = matrix(predictions["targets" if has_targets else "label"], predictions.num_rows)
    return np.asarray(np.abs(outputs_NC - truth_NC).mean(axis=1))


def _harm_set(errors: _Errors, arm: str, against: str) -> HarmSet:
    growth_PR = errors.by_arm[arm] - errors.by_arm[against]
    growth_PR = growth_PR[~np.isnan(growth_PR).all(axis=1)] if growth_PR.size else growth_PR
    tested_R = (~np.isnan(growth_PR)).sum(axis=0)
    worse_R, better_R = (growth_PR > 0).sum(axis=0), (growth_PR < 0).sum(axis=0)
    harmed_R, rescued_R = (_mostly(count_R, tested_R) for count_R in (worse_R, better_R))
    label_R = errors.label_R
    names = {} if label_R is None else {code: str(code) for code in np.unique(label_R[tested_R > 0]).tolist()}
    classes = [] if label_R is None else _slices(growth_PR, label_R, names, harmed_R, rescued_R)
    is_grouped = len(errors.units) < len(errors.rows)
    groups = dict(enumerate(errors.units)) if is_grouped else {}
    slices = _slices(growth_PR, errors.unit_R, groups, harmed_R, rescued_R)
    return HarmSet(
        arm=arm,
        against=against,
        pairs=len(growth_PR),
        rows=int((tested_R > 0).sum()),
        harmed=_turned(errors, harmed_R, worse_R / np.maximum(tested_R, 1)),
        rescued=_turned(errors, rescued_R, better_R / np.maximum(tested_R, 1)),
        expected=_expected(worse_R + better_R, tested_R),
        classes=tuple(one for one, _ in classes),
        groups=tuple(one for one, _ in slices),
        expected_classes=sum(expected for _, expected in classes),
        expected_groups=sum(expected for _, expected in slices),
    )


def _mostly(count: npt.ArrayLike, of: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    return np.asarray((np.asarray(count) >= SHARE * np.asarray(of) - 1e-9) & (np.asarray(of) > 0))


def _expected(differing: npt.ArrayLike, of: npt.ArrayLike) -> float:
    """Return how many of some items would turn by chance; ``differing`` in so many ``of`` the pairs."""
    least = np.ceil(SHARE * np.asarray(of) - 1e-9)
    chance = stats.binom.sf(least - 1, np.asarray(differing), 0.5)
    return float(np.where(np.asarray(of) > 0, chance, 0.0).sum())


def _turned(errors: _Errors, turned_R: npt.NDArray[np.bool_], share_R: Array) -> Turned:
    found = np.flatnonzero(turned_R)
    surest = found[np.argsort(-share_R[found], kind="stable")][:MOST_NAMES]
    return Turned(len(found), tuple(errors.rows[row] for row in surest))


def _slices(
    growth_PR: Array,
    code_R: npt.NDArray[np.int64],
    names: Mapping[int, str],
    harmed_R: npt.NDArray[np.bool_],
    rescued_R: npt.NDArray[np.bool_],
) -> list[tuple[Slice, float]]:
    """Return each slice, with the probability that chance turns it to one side."""
    known_PR = ~np.isnan(growth_PR)
    # Sums of 0 and 1 are exact, so equal errors are equal.
    total_PS = _per_slice(np.where(known_PR, growth_PR, 0.0), code_R, names)
    tested_PS = _per_slice(known_PR, code_R, names) > 0
    of_S = tested_PS.sum(axis=0)
    worse_S, better_S = (total_PS > 0).sum(axis=0), (total_PS < 0).sum(axis=0)
    by_row = np.stack([known_PR.any(axis=0), harmed_R, rescued_R])
    rows_S, harmed_S, rescued_S = _per_slice(by_row, code_R, names)
    return [
        (
            Slice(
                name=name,
                rows=int(rows_S[s]),
                harmed=int(harmed_S[s]),
                rescued=int(rescued_S[s]),
                worse=float(worse_S[s] / of_S[s]),
                better=float(better_S[s] / of_S[s]),
            ),
            _expected(worse_S[s] + better_S[s], of_S[s]),
        )
        for s, name in names.items()
        if of_S[s]
    ]


def _per_slice(values_NR: npt.NDArray[Any], code_R: npt.NDArray[np.int64], names: Mapping[int, str]) -> Array:
    """Return the sums [N, S] of each line over the rows of each slice."""
    size = max(names, default=-1) + 1
    lines = [np.bincount(code_R, value_R, minlength=size) for value_R in values_NR]
    return np.stack(lines) if lines else np.zeros((0, size))
