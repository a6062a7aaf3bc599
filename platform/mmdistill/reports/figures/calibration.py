"""Reliability diagrams: how often a prediction is right that is so sure."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import COLOURS, GREY, panels, shown
from mmdistill.reports.series import confidence, reliability


@FIGURES.register("calibration")
def calibration(sources: Sources) -> Mapping[str, Figure]:
    """Reliability on the test rows: accuracy against confidence in bins of equal size, one panel per arm."""
    if sources.readings.study["task"] != "classification":
        raise NothingToDrawError("predicted targets have no confidence", "it takes a classification")
    # Diverged runs predict too, but no number of the table counts them.
    predictions = sources.readings.predictions
    tested = set() if predictions is None else set(pc.unique(predictions["arm"]).to_pylist())
    arms = [arm for arm in sources.arms if arm.name in tested]
    if predictions is None or not arms:
        raise NothingToDrawError("no test row was predicted yet", "go on with `mmdistill run`")
    figure, places = panels(len(arms))
    for axes, arm in zip(places, arms, strict=True):
        _panel(axes, predictions.filter(pc.equal(predictions["arm"], arm.name)))
        error = "" if arm.calibration_error is None else f"\nerror {arm.calibration_error:.3f}"
        axes.set_title(f"{shown(arm.name, 27)}{error}")
    figure.supxlabel("confidence (thin lines: single runs)", fontsize=7)
    figure.supylabel("accuracy", fontsize=7)
    return {"": figure}


def _panel(axes: Axes, predictions: pa.Table) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle="--")
    curves = [
        reliability(*confidence(predictions.filter(pc.equal(predictions["trial_id"], trial))))
        for trial in pc.unique(predictions["trial_id"]).to_pylist()
    ]
    for confidence_B, accuracy_B in curves:
        axes.plot(confidence_B, accuracy_B, color=COLOURS[0], alpha=0.25, linewidth=0.6)
    confidence_B, accuracy_B = reliability(*confidence(predictions))
    axes.plot(confidence_B, accuracy_B, "o-", color=COLOURS[0], markersize=2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
