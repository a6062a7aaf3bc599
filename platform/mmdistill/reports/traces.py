"""The sections of the page that the runs themselves answer: learning curves, selection shares, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.records.criterion import CRITERIA
from mmdistill.reports.charts import chart
from mmdistill.reports.readings import Readings
from mmdistill.reports.sections import Grid, Section
from mmdistill.reports.series import Bin, CurvePoint, calibration, curves, selection_names

_OURS, _BASELINE = "arm", "baseline"


def learning_curves(readings: Readings, epochs: pa.Table) -> Section | None:
    """Return how the validation score grew, each arm beside its baseline."""
    metric = CRITERIA[readings.study["task"]].metric
    found = curves(epochs, f"validation/{metric}")
    if not found:
        return None
    panels = {
        arm: _rows(found.get(_baseline_of(readings, arm), ()), _BASELINE) + _rows(found[arm], _OURS)
        for arm in _in_order(readings, found)
    }
    means = [point.value.mean for points in found.values() for point in points]
    low, high = np.quantile(means, (0.0, 0.97))
    title = f"validation {metric.replace('_', '-')}"
    drawn = chart(
        "curves",
        panels,
        name="learning curves",
        label=f"Learning curves: {title} by epoch",
        caption=f"Mean {title} over the confirmed runs, with its 95 % interval over runs; dashed: the arm's "
        "baseline.",
        x="epoch",
        scale="linear",
        curve=title,
        low=float(low),
        high=float(high),
    )
    last = [[arm, *_last(found[arm])] for arm in panels]
    grid = Grid("The last epoch of each arm", ["arm", "epoch", title, "n"], last, folded=True)
    again = ["mmdistill query STUDY @learning_curves"]
    return Section("learning", "Learning curves", [drawn, grid], again=again)


def _rows(points: Sequence[CurvePoint], of: str) -> list[dict[str, Any]]:
    if of == _BASELINE:
        return [{"of": of, "x": point.epoch, "mean": point.value.mean} for point in points]
    return [
        {"of": of, "x": epoch, "mean": value.mean, "low": value.low, "high": value.high}
        for epoch, value in points
    ]


def _last(points: Sequence[CurvePoint]) -> list[str]:
    epoch, value = points[-1]
    half = "" if np.isnan(value.low) else f" ± {value.high - value.mean:.3f}"
    return [str(epoch), f"{value.mean:.3f}{half}", str(value.n)]


def _baseline_of(readings: Readings, arm: str) -> str | None:
    """Return the baseline to draw beside an arm; none beside itself."""
    own = {one.name: one.baseline for one in readings.declared}.get(arm)
    return None if own == arm else own


def _in_order(readings: Readings, found: Mapping[str, Any]) -> list[str]:
    return [arm.name for arm in readings.declared if arm.name in found]


def selection_shares(readings: Readings, epochs: pa.Table) -> Section | None:
    """Return which teacher each arm chose, epoch by epoch."""
    teachers = selection_names(epochs)
    shares = {teacher: curves(epochs, f"selection/{teacher}") for teacher in teachers}
    arms = _in_order(readings, {arm: None for found in shares.values() for arm in found})
    if not arms:
        return None
    panels = {
        arm: [
            {"epoch": point.epoch, "share": point.value.mean, "teacher": teacher, "place": place}
            for place, teacher in enumerate(teachers)
            for point in shares[teacher].get(arm, ())
        ]
        for arm in arms
    }
    drawn = chart(
        "selection_shares",
        panels,
        label="Share of choices that fell on each teacher, by epoch",
        caption="Share of the training rows for which each teacher was chosen, mean over the confirmed runs.",
        teachers=teachers,
    )
    last = [[arm, *(_last_share(shares[teacher].get(arm)) for teacher in teachers)] for arm in arms]
    grid = Grid("Shares in the last epoch", ["arm", *teachers], last, folded=True)
    again = ["mmdistill query STUDY @selection_shares"]
    return Section("selection", "Which teacher was chosen", [drawn, grid], again=again)


def _last_share(points: Sequence[CurvePoint] | None) -> str:
    return f"{points[-1].value.mean:.3f}" if points else "-"


def reliability(readings: Readings, predictions: pa.Table) -> Section | None:
    """Return whether confidence can be believed, each arm beside its baseline."""
    if readings.basis != "test":
        return None
    read = [run["trial_id"] for arm in readings.arms.values() for run in arm.runs.values()]
    found = calibration(predictions.filter(pc.is_in(predictions["trial_id"], pa.array(read, pa.string()))))
    if not found:
        return None
    panels = {
        arm: _bins(found.get(_baseline_of(readings, arm) or "", ()), _BASELINE) + _bins(found[arm], _OURS)
        for arm in _in_order(readings, found)
    }
    drawn = chart(
        "calibration",
        panels,
        label="Reliability diagram: accuracy against confidence",
        caption="Test rows of all runs in ten bins of equal numbers of rows, by the probability of the "
        "predicted class. Below the diagonal: more confident than right. Dashed: the arm's baseline.",
        low=min(min(one.confidence, one.accuracy) for bins in found.values() for one in bins),
    )
    header = ["arm", *(f"bin {number + 1}" for number in range(max(map(len, found.values()))))]
    rows = [[arm, *(f"{one.confidence:.2f} → {one.accuracy:.2f}" for one in found[arm])] for arm in panels]
    grid = Grid("Confidence → accuracy of each bin", header, rows, folded=True)
    again = ["mmdistill query STUDY @calibration"]
    return Section("calibration", "Calibration", [drawn, grid], again=again)


def _bins(bins: Sequence[Bin], of: str) -> list[dict[str, Any]]:
    return [{"of": of, "confidence": one.confidence, "accuracy": one.accuracy} for one in bins]
