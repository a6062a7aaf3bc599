"""Curves over epochs and reliability as data, for the figures and the page.

Axes: R runs or replicates, E epochs from 0, N rows, B bins.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.reports.readings import Readings
from mmdistill.statistics import Array, t_interval

BINS = 10
SELECTION = "selection/"
Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Runs by arm, then by trial."""


class Band(NamedTuple):
    """A mean curve over replicates with its pointwise 95 % interval; NaN where one run alone is left."""

    mean_E: Array
    low_E: Array
    high_E: Array
    n: int


def confirmed(readings: Readings) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the complete confirmation runs by arm, in order, and by trial."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for arm in readings.declared:
        for run in readings.trials.get(arm.name, ()):
            if (run["phase"], run["status"]) == ("confirm", "complete"):
                found.setdefault(arm.name, {})[run["trial_id"]] = run
    return found


def names_of_curves(epochs: pa.Table) -> list[str]:
    """Return the curves that confirmed runs left, sorted."""
    return sorted(pc.unique(epochs["name"].filter(pc.equal(epochs["phase"], "confirm"))).to_pylist())


def bands(readings: Readings, runs: Runs, epochs: pa.Table, name: str) -> dict[str, Band]:
    """Return the band of one curve per arm; arms without the curve are left out.

    Seeds are averaged within a fold where there are several folds, and the interval is that of overlapping
    folds, as for all scores on validation rows.

    Args:
        readings: of the study.
        runs: from :func:`confirmed`.
        epochs: the table of the study.
        name: of the curve, e.g. ``validation/log_loss``.
    """
    here = epochs.filter(pc.and_(pc.equal(epochs["phase"], "confirm"), pc.equal(epochs["name"], name)))
    found = {}
    for arm, mine in runs.items():
        values_RE = _by_run(here.filter(pc.equal(here["arm"], arm)), list(mine))
        if values_RE.size:
            scheme, folds = readings.scheme_of_runs(arm), [run["fold"] for run in mine.values()]
            by_replicate = _averaged(values_RE, folds) if scheme.replicate == "folds" else values_RE
            found[arm] = _band(by_replicate, scheme.test_share)
    return found


def _by_run(curve: pa.Table, trial_ids: list[str]) -> Array:
    """Return the values [runs, epochs], NaN after the end of a run."""
    if not curve.num_rows:
        return np.zeros((0, 0))
    places = {trial_id: place for place, trial_id in enumerate(trial_ids)}
    run_N = np.array([places.get(trial_id, -1) for trial_id in curve["trial_id"].to_pylist()])
    epoch_N = curve["epoch"].to_numpy()
    values_RE = np.full((len(trial_ids), int(epoch_N.max()) + 1), np.nan)
    kept_N = run_N >= 0
    values_RE[run_N[kept_N], epoch_N[kept_N]] = curve["value"].to_numpy()[kept_N]
    return values_RE


def _averaged(values_RE: Array, folds: list[int]) -> Array:
    fold_R = np.array(folds)
    return np.stack([_mean(values_RE[fold_R == fold]) for fold in np.unique(fold_R)])


def _mean(values_RE: Array) -> Array:
    known_RE = ~np.isnan(values_RE)
    count_E = known_RE.sum(axis=0)
    total_E = np.where(known_RE, values_RE, 0).sum(axis=0)
    mean_E: Array = np.divide(total_E, count_E, out=np.full(count_E.shape, np.nan), where=count_E > 0)
    return mean_E


def _band(values_RE: Array, test_share: float) -> Band:
    points = [t_interval(column[~np.isnan(column)], test_share=test_share) for column in values_RE.T]
    mean_E, low_E, high_E = (np.array([getattr(p, end) for p in points]) for end in ("mean", "low", "high"))
    return Band(mean_E, low_E, high_E, len(values_RE))


def confidence(predictions: pa.Table) -> tuple[Array, Array]:
    """Return the probability of the predicted class of each row, and 1 where it is the label, else 0."""
    probability_NC = pc.list_flatten(predictions["outputs"]).to_numpy().reshape(predictions.num_rows, -1)
    right_N = probability_NC.argmax(axis=1) == predictions["label"].to_numpy()
    return probability_NC.max(axis=1), right_N.astype(np.float64)


def reliability(confidence_N: Array, right_N: Array, bins: int = BINS) -> tuple[Array, Array]:
    """Return mean confidence and accuracy of rows sorted by confidence and cut into bins of equal size.

    Args:
        confidence_N: probability of the predicted class, 0 to 1.
        right_N: 1 where it is the label, else 0.
        bins: how many; fewer where there are fewer rows.
    """
    order_N = np.argsort(confidence_N, kind="stable")
    parts = np.array_split(order_N, min(bins, len(order_N)))
    return (
        np.array([confidence_N[part].mean() for part in parts]),
        np.array([right_N[part].mean() for part in parts]),
    )


def thinned(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most ``most`` of ``count`` places, evenly apart, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
