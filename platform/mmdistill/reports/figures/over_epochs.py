"""Curves over epochs: mean and band per arm."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.reports.figures.base import Sources
from mmdistill.statistics import t_interval

Array = npt.NDArray[np.float64]


class Band(NamedTuple):
    """A mean curve over replicates with its pointwise 95 % interval; NaN where one run alone is left.

    Axes: E epochs, from 0.
    """

    mean_E: Array
    low_E: Array
    high_E: Array
    n: int


def names_of_curves(sources: Sources) -> list[str]:
    """Return the curves that confirmed runs left, sorted."""
    epochs = sources.tables["epochs"]
    return sorted(pc.unique(epochs["name"].filter(pc.equal(epochs["phase"], "confirm"))).to_pylist())


def bands(sources: Sources, name: str) -> dict[str, Band]:
    """Return the band of one curve per arm, over its confirmed runs; arms without the curve are left out.

    As in the tables, seeds are averaged within a fold where folds are the replicates.
    """
    epochs = sources.tables["epochs"]
    here = epochs.filter(pc.and_(pc.equal(epochs["phase"], "confirm"), pc.equal(epochs["name"], name)))
    found = {}
    for arm, runs in sources.confirmed().items():
        values_RE = _by_run(here.filter(pc.equal(here["arm"], arm)), list(runs))
        if values_RE.size:
            folds = [run["fold"] for run in runs.values()]
            found[arm] = _band(values_RE if len(set(folds)) == 1 else _averaged(values_RE, folds))
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
    return np.divide(total_E, count_E, out=np.full(count_E.shape, np.nan), where=count_E > 0)


def _band(values_RE: Array) -> Band:
    points = [t_interval(column[~np.isnan(column)]) for column in values_RE.T]
    mean_E, low_E, high_E = (np.array([getattr(p, end) for p in points]) for end in ("mean", "low", "high"))
    return Band(mean_E, low_E, high_E, len(values_RE))


def all_bands(sources: Sources, names: list[str]) -> dict[str, Mapping[str, Band]]:
    """Return the bands of several curves by name, empty ones left out."""
    found = {name: bands(sources, name) for name in names}
    return {name: by_arm for name, by_arm in found.items() if by_arm}
