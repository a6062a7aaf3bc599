"""Curves and calibration of the confirmed and tested runs, thinned so that they can be drawn.

Axes: N rows, R runs, E epochs, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.statistics import Interval, t_interval

MOST_POINTS = 60
BINS = 10


class CurvePoint(NamedTuple):
    """One epoch of one curve of one arm: mean over its confirmed runs with its 95 % interval."""

    epoch: int
    value: Interval


class Bin(NamedTuple):
    """Rows of like confidence, over all tested runs of an arm.

    Attributes:
        confidence: mean probability of the predicted class, 0 to 1.
        accuracy: share of them that is right, 0 to 1.
        rows: how many there are.
    """

    confidence: float
    accuracy: float
    rows: int


Curves = Mapping[str, Sequence[CurvePoint]]


def curves(epochs: pa.Table, name: str) -> dict[str, list[CurvePoint]]:
    """Return a curve of each arm: over the confirmed runs that got there, at most ``MOST_POINTS`` epochs.

    Args:
        epochs: the table ``epochs``.
        name: of the curve, e.g. ``validation/log_loss``.
    """
    kept = epochs.filter((pc.field("phase") == "confirm") & (pc.field("name") == name))
    arms = kept["arm"].to_numpy(zero_copy_only=False)
    return {arm: _points(kept.filter(pa.array(arms == arm))) for arm in sorted(set(arms.tolist()))}


def _points(rows: pa.Table) -> list[CurvePoint]:
    epoch_N, value_N = (rows[column].to_numpy(zero_copy_only=False) for column in ("epoch", "value"))
    order_N = np.argsort(epoch_N, kind="stable")
    epochs_E, first_E = np.unique(epoch_N[order_N], return_index=True)
    values = np.split(value_N[order_N], first_E[1:])
    return [CurvePoint(int(epochs_E[e]), t_interval(values[e])) for e in _thinned(len(epochs_E))]


def _thinned(count: int) -> list[int]:
    """Return at most ``MOST_POINTS`` places, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int).tolist()))


def selection_names(epochs: pa.Table) -> list[str]:
    """Return the teachers that any confirmed run chose among."""
    names = pc.unique(epochs.filter(pc.field("phase") == "confirm")["name"]).to_pylist()
    return sorted(name.removeprefix("selection/") for name in names if name.startswith("selection/"))


def calibration(predictions: pa.Table) -> dict[str, list[Bin]]:
    """Return for each arm bins of equal numbers of rows by confidence; nothing for a regression.

    Args:
        predictions: of the runs to judge.
    """
    if not predictions.num_rows or len(pc.list_flatten(predictions["targets"])):
        return {}
    arms = predictions["arm"].to_numpy(zero_copy_only=False)
    return {arm: _bins(predictions.filter(pa.array(arms == arm))) for arm in sorted(set(arms.tolist()))}


def _bins(rows: pa.Table) -> list[Bin]:
    outputs_NC = pc.list_flatten(rows["outputs"]).to_numpy().reshape(rows.num_rows, -1)
    confidence_N, hit_N = outputs_NC.max(axis=1), outputs_NC.argmax(axis=1) == rows["label"].to_numpy()
    order_N = np.argsort(confidence_N, kind="stable")
    pieces = [piece for piece in np.array_split(order_N, BINS) if len(piece)]
    return [Bin(float(confidence_N[p].mean()), float(hit_N[p].mean()), len(p)) for p in pieces]
