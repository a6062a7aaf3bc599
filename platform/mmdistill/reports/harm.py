"""Which rows, classes and groups an arm turns from right to wrong, and back, whatever the seed.

Axes: N rows of predictions, P pairs, R rows of data, S slices (classes or groups).
A row is tested in one fold only, so there are far fewer predictions than pairs times rows.
"""

from collections.abc import Mapping
from typing import NamedTuple

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


class _Tested(NamedTuple):
    """The predictions of one arm: which row in which pair, and how wrong.

    Attributes:
        cell_N: pair and row as one number, pair * rows + row.
        error_N: the error.
    """

    cell_N: npt.NDArray[np.int64]
    error_N: Array


class _Errors(NamedTuple):
    """The errors of all runs, and what there is to know of a row.

    Attributes:
        label_R: class index; of regression nothing.
    """

    rows: tuple[str, ...]
    by_arm: Mapping[str, _Tested]
    unit_R: npt.NDArray[np.int64]
    units: tuple[str, ...]
    label_R: npt.NDArray[np.int64] | None


class _Growth(NamedTuple):
    """How much the error grew where both arms tested a row in a pair; pairs are 0 .. P - 1."""

    pair_N: npt.NDArray[np.int64]
    row_N: npt.NDArray[np.int64]
    growth_N: Array
    pairs: int


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
    (arm_N, arms), (pair_N, _), (row_N, rows), (unit_N, units) = (
        codes(kept[name]) for name in ("arm", "pair_id", "row", "unit")
    )
    error_N = _error(kept, is_classification=is_classification) if len(kept) else np.zeros(0)
    cell_N = pair_N * len(rows) + row_N
    unit_R = np.zeros(len(rows), dtype=np.int64)
    unit_R[row_N] = unit_N
    label_R = np.zeros(len(rows), dtype=np.int64)
    if is_classification:
        label_R[row_N] = kept["label"].to_numpy()
    return _Errors(
        rows=tuple(rows),
        by_arm={arm: _Tested(cell_N[arm_N == a], error_N[arm_N == a]) for a, arm in enumerate(arms)},
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
    growth = _growth(errors.by_arm[arm], errors.by_arm[against], len(errors.rows))
    tested_R, worse_R, better_R = (
        np.bincount(growth.row_N[those_N], minlength=len(errors.rows))
        for those_N in (slice(None), growth.growth_N > 0, growth.growth_N < 0)
    )
    harmed_R, rescued_R = (_mostly(count_R, tested_R) for count_R in (worse_R, better_R))
    label_R = errors.label_R
    names = {} if label_R is None else {code: str(code) for code in np.unique(label_R[tested_R > 0]).tolist()}
    classes = [] if label_R is None else _slices(growth, label_R, names, harmed_R, rescued_R)
    is_grouped = len(errors.units) < len(errors.rows)
    groups = dict(enumerate(errors.units))
    slices = _slices(growth, errors.unit_R, groups, harmed_R, rescued_R) if is_grouped else []
    return HarmSet(
        arm=arm,
        against=against,
        pairs=growth.pairs,
        rows=int((tested_R > 0).sum()),
        harmed=_turned(errors, harmed_R, worse_R / np.maximum(tested_R, 1)),
        rescued=_turned(errors, rescued_R, better_R / np.maximum(tested_R, 1)),
        expected=_expected(worse_R + better_R, tested_R),
        classes=tuple(one for one, _ in classes),
        groups=tuple(one for one, _ in slices),
        expected_classes=sum(expected for _, expected in classes),
        expected_groups=sum(expected for _, expected in slices),
    )


def _growth(arm: _Tested, against: _Tested, rows: int) -> _Growth:
    cell_N, ours_N, theirs_N = np.intersect1d(arm.cell_N, against.cell_N, return_indices=True)
    pairs, pair_N = np.unique(cell_N // rows, return_inverse=True)
    return _Growth(pair_N, cell_N % rows, arm.error_N[ours_N] - against.error_N[theirs_N], len(pairs))


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
    growth: _Growth,
    code_R: npt.NDArray[np.int64],
    names: Mapping[int, str],
    harmed_R: npt.NDArray[np.bool_],
    rescued_R: npt.NDArray[np.bool_],
) -> list[tuple[Slice, float]]:
    """Return each slice, with the probability that chance turns it to one side."""
    size = max(names, default=-1) + 1
    cell_N, shape = growth.pair_N * size + code_R[growth.row_N], (growth.pairs, size)
    # Sums of 0 and 1 are exact, so equal errors are equal.
    total_PS = np.bincount(cell_N, growth.growth_N, minlength=growth.pairs * size).reshape(shape)
    tested_PS = np.bincount(cell_N, minlength=growth.pairs * size).reshape(shape) > 0
    of_S = tested_PS.sum(axis=0)
    worse_S, better_S = (total_PS > 0).sum(axis=0), (total_PS < 0).sum(axis=0)
    tested_R = np.bincount(growth.row_N, minlength=code_R.size) > 0
    rows_S, harmed_S, rescued_S = (
        np.bincount(code_R[those_R], minlength=size) for those_R in (tested_R, harmed_R, rescued_R)
    )
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
