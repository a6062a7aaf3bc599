"""What a recipe is worth in labels: "hinton at 25 % = student_only at 43 % of the labels".

Axes: A arms, N replicates, F label fractions, G points between the smallest and the largest fraction.
"""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import optimize, stats

from mmdistill.reports.arms import Declared
from mmdistill.reports.evidence import replicates
from mmdistill.reports.readings import Readings
from mmdistill.statistics import Array, Interval

Side = Literal["below", "inside", "above"]
# A curve needs a point between its ends.
_FEWEST = 3
# Of one there is no interval.
_REPLICATES = 2
_POINTS = 400
_ROUNDING = 1e-12
# What decides a student that nobody teaches, beside its data.
_STUDENT = ("network.", "hallucinator.", "student.", "optimiser.", "epochs", "batch_size")


class Labels(NamedTuple):
    """The labels of an arm's runs.

    Attributes:
        fraction: share of the training labels it may use, in (0, 1].
        data: what else decides the student's data, as JSON text; a label curve has one such text.
    """

    fraction: float
    data: str


class Worth(NamedTuple):
    """How many labels the student alone needs to score as one arm does.

    Attributes:
        arm: the arm.
        fraction: its own label fraction.
        score: its mean score with the 95 % interval over replicates.
        equal: label fraction at which the curve of the student alone reaches that mean; the end of the
            measured range where it lies beyond.
        side: whether ``equal`` lies inside the measured range; nothing is extrapolated.
        low: lower end of the 95 % interval of ``equal`` over replicates, inside the measured range.
        high: upper end.
        open_low: whether the interval goes on below the smallest measured fraction.
        open_high: whether it goes on above the largest.
        n: replicates.
    """

    arm: str
    fraction: float
    score: Interval
    equal: float
    side: Side
    low: float
    high: float
    open_low: bool
    open_high: bool
    n: int


class LabelCurve(NamedTuple):
    """The student alone over label fractions, and what it says of the arms on the same data.

    Attributes:
        arms: the arms without a teacher, by rising fraction.
        fractions: F numbers in (0, 1], rising.
        scores: their mean scores with 95 % intervals over replicates.
        fitted: the closest curve that never falls; between the points it is straight in log(fraction).
        worths: one per other arm.
        n: pairs that all arms of the curve finished.
    """

    arms: tuple[str, ...]
    fractions: tuple[float, ...]
    scores: tuple[Interval, ...]
    fitted: tuple[float, ...]
    worths: tuple[Worth, ...]
    n: int


class Exchange(NamedTuple):
    """The label curves of a study, usually one; none, and the reason, where it has no label axis."""

    curves: tuple[LabelCurve, ...]
    reason: str | None


def labels_of(trials: pa.Table) -> dict[str, Labels]:
    """Return the labels of each arm whose repeated runs agree on them, from the settings in ``trials``."""
    kept = trials.filter(pc.is_in(trials["phase"], pa.array(["confirm", "test"])))
    settings = kept.select(["arm", "config_json"]).group_by(["arm", "config_json"]).aggregate([])
    found: dict[str, set[Labels]] = {}
    for row in settings.to_pylist():
        data = json.loads(row["config_json"]).get("data", {})
        if "label_fraction" in data:
            found.setdefault(row["arm"], set()).add(_labels(data))
    return {arm: labels.pop() for arm, labels in found.items() if len(labels) == 1}


def _labels(data: Mapping[str, Any]) -> Labels:
    # A teacher's modalities do not change what the student alone learns from.
    rest = {key: value for key, value in data.items() if key not in ("label_fraction", "privileged")}
    return Labels(float(data["label_fraction"]), json.dumps(rest, sort_keys=True))


def exchange(readings: Readings, labels: Mapping[str, Labels]) -> Exchange:
    """Return what every arm is worth in labels of the student alone.

    The label curve is the least-squares curve that never falls (isotonic regression of the means), straight
    between the measured fractions in log(fraction). A power law has three parameters, as many as most studies
    have fractions, and an asymptote they do not determine; this curve assumes no form. It is linear in the
    scores, so each replicate has its own: the interval holds every fraction X at which the mean of (arm -
    curve at X) over replicates does not differ from 0 by Student's t at .05 (test inversion, as in Fieller's
    interval).

    Args:
        readings: of the study; its confirmed or tested runs are used.
        labels: from :func:`labels_of`.
    """
    by_data = _alone_arms(readings, labels)
    curves = [
        _curve(readings, labels, data, arms)
        for data, arms in by_data.items()
        if len(arms) >= _FEWEST and all(len(same) == 1 for same in arms.values())
    ]
    found = tuple(curve for curve in curves if curve is not None)
    most = max((len(arms) for arms in by_data.values()), default=0)
    return Exchange(found, None if found else _reason(readings, most))


def _alone_arms(readings: Readings, labels: Mapping[str, Labels]) -> dict[str, dict[float, list[str]]]:
    """Return the arms without a teacher, by the student's data and then by label fraction.

    They have the recipe of the study's baseline; where several do at one fraction, those count that others
    are compared with. Where none does, an arm counts whose student is the baseline's and is taught nothing.
    """
    recipe = {arm.name: arm.recipe for arm in readings.declared}[readings.study["baseline"]]
    baselines = {readings.study["baseline"], *(arm.baseline for arm in readings.declared)}
    found: dict[str, dict[float, list[Declared]]] = {}
    for arm in readings.declared:
        is_alone = arm.recipe == recipe or _is_baselines_student(readings, arm)
        if is_alone and not arm.frozen and arm.name in labels and arm.name in readings.arms:
            fraction, data = labels[arm.name]
            found.setdefault(data, {}).setdefault(fraction, []).append(arm)
    return {
        data: {fraction: _nearest(same, recipe, baselines) for fraction, same in arms.items()}
        for data, arms in found.items()
    }


def _nearest(same: Sequence[Declared], recipe: str, baselines: Collection[str | None]) -> list[str]:
    named = [arm.name for arm in same if arm.recipe == recipe] or [arm.name for arm in same]
    return [name for name in named if name in baselines] or named


def _is_baselines_student(readings: Readings, arm: Declared) -> bool:
    """Return whether an arm is the baseline but for its labels, though written with another recipe.

    An arm of an axis that equals a control has the control's name and recipe.
    """
    ours = readings.settings.get(arm.name, {})
    alone = readings.settings.get(readings.study["baseline"], {})
    weights = [
        value for path, value in ours.items() if path.startswith("terms.") and path.endswith(".weight")
    ]
    is_taught = bool(arm.teachers) or any(weight != 0 for weight in weights)
    paths = {path for path in [*ours, *alone] if path.startswith(_STUDENT)}
    return bool(ours) and not is_taught and all(ours.get(path) == alone.get(path) for path in paths)


def _reason(readings: Readings, most: int) -> str:
    if readings.basis == "search":
        return "no arm was confirmed yet"
    if most < _FEWEST:
        return (
            f"the arms without a teacher have {most} label fraction(s), and a label curve needs {_FEWEST}: "
            "add a design of the kind axis over data.label_fraction"
        )
    counted = readings.schemes[readings.study["baseline"]].replicate
    return (
        f"the arms without a teacher share fewer than {_REPLICATES} {counted}, or two of them have the same "
        "label fraction"
    )


class _Alone(NamedTuple):
    """The student alone, as an arm is compared with it: its scores pooled so that no mean falls."""

    arms: list[str]
    log_F: Array
    fitted_F: Array
    pooling_FF: Array


def _curve(
    readings: Readings, labels: Mapping[str, Labels], data: str, arms: Mapping[float, list[str]]
) -> LabelCurve | None:
    fractions = sorted(arms)
    names = [arms[fraction][0] for fraction in fractions]
    score_FN = _scores(readings, names)
    if score_FN.shape[1] < _REPLICATES:
        return None
    mean_F = score_FN.mean(axis=1)
    pooling_FF = _pooling(mean_F)
    fitted_F = mean_F @ pooling_FF
    alone = _Alone(names, np.log(fractions), fitted_F, pooling_FF)
    others = [
        arm.name
        for arm in readings.declared
        if arm.name not in names and arm.name in readings.arms and not arm.frozen
    ]
    worths = [
        _worth(readings, name, labels[name].fraction, alone)
        for name in others
        if name in labels
        and labels[name].data == data
        and _scores(readings, [name, *names]).shape[1] >= _REPLICATES
    ]
    scores = tuple(readings.score(name) for name in names)
    fitted = tuple(fitted_F.tolist())
    return LabelCurve(
        tuple(names), tuple(fractions), scores, fitted, tuple(worths), len(_shared(readings, names))
    )


def _shared(readings: Readings, arms: Sequence[str]) -> list[str]:
    return sorted(set.intersection(*(set(readings.arms[arm].runs) for arm in arms)))


def _scores(readings: Readings, arms: Sequence[str]) -> Array:
    """Return the score of each arm on each replicate of the pairs they share, [A, N]."""
    found, scheme = [readings.arms[arm] for arm in arms], readings.schemes[arms[0]]
    return replicates(found, _shared(readings, arms), score=readings.study["score"], scheme=scheme)


def _pooling(mean_F: Array) -> Array:
    """Return the matrix that averages neighbours whose means fall, so that ``mean_F @ matrix`` never does."""
    ends = optimize.isotonic_regression(mean_F).blocks
    pooling_FF = np.zeros((mean_F.size, mean_F.size))
    for start, end in itertools.pairwise(ends):
        pooling_FF[start:end, start:end] = 1 / (end - start)
    return pooling_FF


def _worth(readings: Readings, name: str, fraction: float, alone: _Alone) -> Worth:
    grid_G = np.linspace(alone.log_F[0], alone.log_F[-1], _POINTS)
    mean_G, half_G, n = _difference(readings, name, alone, grid_G)
    side, equal = _reached(mean_G, grid_G)
    # With a point at the estimate itself no interval is too narrow to be found.
    finer_G = np.union1d(grid_G, [equal])
    slack_G = np.interp(finer_G, grid_G, half_G) - np.abs(np.interp(finer_G, grid_G, mean_G))
    low, high = np.exp(_ends(slack_G, finer_G, equal))
    return Worth(
        arm=name,
        fraction=fraction,
        score=readings.score(name),
        equal=float(np.exp(equal)),
        side=side,
        low=float(low),
        high=float(high),
        open_low=bool(mean_G[0] - half_G[0] <= 0),
        open_high=bool(mean_G[-1] + half_G[-1] >= 0),
        n=n,
    )


def _ends(slack_G: Array, grid_G: Array, equal: float) -> tuple[float, float]:
    """Return the first and the last point with slack, straight between the points; both ``equal`` if none."""
    inside = np.flatnonzero(slack_G >= -_ROUNDING)
    if not inside.size:
        return equal, equal
    first, last = int(inside[0]), int(inside[-1])
    low = grid_G[0] if first == 0 else _zero(slack_G, grid_G, first - 1, first)
    high = grid_G[-1] if last == grid_G.size - 1 else _zero(slack_G, grid_G, last + 1, last)
    return min(float(low), equal), max(float(high), equal)


def _zero(value_G: Array, grid_G: Array, before: int, after: int) -> float:
    """Return where a straight line between two points is 0."""
    share = value_G[before] / (value_G[before] - value_G[after])
    return float(grid_G[before] + share * (grid_G[after] - grid_G[before]))


def _difference(readings: Readings, name: str, alone: _Alone, grid_G: Array) -> tuple[Array, Array, int]:
    """Return the mean of (arm - curve) over replicates at each point, half its 95 % interval, and n."""
    ours_N, *alone_FN = _scores(readings, [name, *alone.arms])
    curve_NG = np.stack(alone_FN).T @ alone.pooling_FF @ _straight(alone.log_F, grid_G)
    difference_NG = ours_N[:, None] - curve_NG
    n, share = len(ours_N), readings.schemes[name].test_share
    error_G = np.sqrt((1 / n + share) * difference_NG.var(axis=0, ddof=1))
    return difference_NG.mean(axis=0), stats.t.ppf(0.975, n - 1) * error_G, n


def _straight(log_F: Array, grid_G: Array) -> Array:
    """Return the weights [F, G] of linear interpolation."""
    return np.stack([np.interp(grid_G, log_F, unit_F) for unit_F in np.eye(log_F.size)])


def _reached(mean_G: Array, grid_G: Array) -> tuple[Side, float]:
    """Return the first point at which a difference that never rises is no longer above 0."""
    if mean_G[0] < 0:
        return "below", float(grid_G[0])
    if mean_G[-1] > 0:
        return "above", float(grid_G[-1])
    after = int(np.argmax(mean_G <= 0))
    return "inside", float(grid_G[0]) if after == 0 else _zero(mean_G, grid_G, after - 1, after)
