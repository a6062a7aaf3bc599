"""The sections of the page that the runs themselves answer: searches, curves, selection, calibration.

Axes: E epochs, as in :mod:`mmdistill.reports.series`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdistill.records.criterion import CRITERIA
from mmdistill.reports.ablation import Ablation
from mmdistill.reports.cells import NOTHING, number, score
from mmdistill.reports.importance import ANSWERS, PER_DIMENSION, Method, Search, importance
from mmdistill.reports.page.charts import chart
from mmdistill.reports.page.sections import BASELINE, OURS, Grid, Section
from mmdistill.reports.readings import Readings
from mmdistill.reports.series import (
    SELECTION,
    Band,
    bands,
    confidence,
    confirmed,
    names_of_curves,
    reliability,
    thinned,
)
from mmdistill.statistics import Interval

_MOST_POINTS = 60
# Quick where there are many trials.
_METHOD: Method = "ped-anova"


def hyperparameters(ablation: Ablation, searches: Callable[[], Sequence[Search]]) -> Section | None:
    """Return what set the best trials of each search apart; None where all searches are too small to tell."""
    large = {
        arm.name
        for arm in ablation.arms
        if arm.declared.dimensions > 1 and arm.budget.trials >= PER_DIMENSION * arm.declared.dimensions
    }
    asked = [search for search in searches() if search.arm in large] if large else []
    found = [one for one in (importance(search, _METHOD) for search in asked) if one.shares]
    if not found:
        return None
    drawn = chart(
        "importance",
        {one.arm: [share._asdict() for share in one.shares] for one in found},
        label="Importance of the searched hyperparameters of each arm",
        caption=f"{ANSWERS[_METHOD]}. Validation rows.",
    )
    rows = [[one.arm, str(one.trials), s.parameter, f"{s.share:.3f}"] for one in found for s in one.shares]
    header = ["arm", "trials", "hyperparameter", "share"]
    grid = Grid("Shares", header, rows, frozenset({0, 2}), folded=True)
    notes = [f"{one.arm}: {caution}." for one in found for caution in one.cautions]
    again = [f"mmdistill importance STUDY --method {_METHOD}"]
    return Section("importance", "Which hyperparameters mattered", [drawn, grid], notes=notes, again=again)


def learning_curves(readings: Readings, epochs: pa.Table) -> Section | None:
    """Return how the validation score grew, each arm beside its baseline."""
    metric = CRITERIA[readings.study["task"]].metric
    found = bands(readings, confirmed(readings), epochs, f"validation/{metric}")
    if not found:
        return None
    against = {arm.name: arm.baseline for arm in readings.declared}
    panels = {
        arm: _band_rows(found.get(against[arm] or ""), BASELINE) + _band_rows(band, OURS)
        for arm, band in found.items()
    }
    # The first epochs are the worst, and the worst are at the top of a loss.
    kept = (0.0, 0.97) if CRITERIA[readings.study["task"]].factor > 0 else (0.03, 1.0)
    low, high = np.nanquantile(np.concatenate([band.mean_E for band in found.values()]), kept)
    title = f"validation {metric.replace('_', '-')}"
    drawn = chart(
        "curves",
        panels,
        name="learning curves",
        label=f"Learning curves: {title} by epoch",
        caption=f"Mean {title} over the confirmed runs, with its 95 % interval over runs; dashed: the arm's "
        "baseline. Cut where the first epochs lie beyond.",
        x="epoch",
        scale="linear",
        curve=title,
        low=float(low),
        high=float(high),
    )
    rows = [[arm, *_last(band)] for arm, band in found.items()]
    grid = Grid("The last epoch of each arm", ["arm", "epoch", title, "n"], rows, folded=True)
    return Section(
        "learning", "Learning curves", [drawn, grid], again=["mmdistill query STUDY @learning_curves"]
    )


def _band_rows(band: Band | None, of: str) -> list[dict[str, Any]]:
    if band is None:
        return []
    places_E = thinned(len(band.mean_E), _MOST_POINTS)
    columns = {"x": places_E, "mean": band.mean_E[places_E]}
    if of == OURS:
        columns |= {"low": band.low_E[places_E], "high": band.high_E[places_E]}
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"of": of, **dict(zip(columns, line, strict=True))} for line in lines]


def _last(band: Band) -> list[str]:
    last = Interval(float(band.mean_E[-1]), float(band.low_E[-1]), float(band.high_E[-1]), band.n)
    return [str(len(band.mean_E) - 1), score(last).text, str(band.n)]


def selection_shares(readings: Readings, epochs: pa.Table) -> Section | None:
    """Return which teacher each arm chose, epoch by epoch."""
    names = [name for name in names_of_curves(epochs) if name.startswith(SELECTION)]
    runs = confirmed(readings)
    shares = {name.removeprefix(SELECTION): bands(readings, runs, epochs, name) for name in names}
    arms = [arm for arm in runs if any(arm in found for found in shares.values())]
    if not arms:
        return None
    drawn = chart(
        "selection_shares",
        {arm: _share_rows(shares, arm) for arm in arms},
        label="Share of choices that fell on each teacher, by epoch",
        caption="Share of the training rows for which each teacher was chosen, mean over the confirmed runs.",
        teachers=list(shares),
    )
    rows = [[arm, *(_last_share(found.get(arm)) for found in shares.values())] for arm in arms]
    grid = Grid("Shares in the last epoch", ["arm", *shares], rows, folded=True)
    again = ["mmdistill query STUDY @selection_shares"]
    return Section("selection", "Which teacher was chosen", [drawn, grid], again=again)


def _share_rows(shares: Mapping[str, Mapping[str, Band]], arm: str) -> list[dict[str, Any]]:
    return [
        {"epoch": int(epoch), "share": float(found[arm].mean_E[epoch]), "teacher": teacher, "place": place}
        for place, (teacher, found) in enumerate(shares.items())
        if arm in found
        for epoch in thinned(len(found[arm].mean_E), _MOST_POINTS)
    ]


def _last_share(band: Band | None) -> str:
    return number(float(band.mean_E[-1])).text if band else NOTHING


def calibration(readings: Readings) -> Section | None:
    """Return whether confidence can be believed, each arm beside its baseline; nothing for a regression."""
    kept = readings.predictions
    if readings.basis != "test" or readings.study["task"] != "classification" or not kept:
        return None
    there = set(pc.unique(kept["arm"]).to_pylist())
    bins = {
        arm.name: reliability(*confidence(kept.filter(pc.equal(kept["arm"], arm.name))))
        for arm in readings.declared
        if arm.name in there
    }
    found = {arm: list(zip(*(side.tolist() for side in sides), strict=True)) for arm, sides in bins.items()}
    against = {arm.name: arm.baseline for arm in readings.declared}
    drawn = chart(
        "calibration",
        {
            arm: _bin_rows(found.get(against[arm] or "", []), BASELINE) + _bin_rows(mine, OURS)
            for arm, mine in found.items()
        },
        label="Reliability diagram: accuracy against confidence",
        caption="Test rows of all runs in bins of equal numbers of rows, by the probability of the predicted "
        "class. Below the diagonal: more sure than right. Dashed: the arm's baseline.",
        low=min(end for mine in found.values() for pair in mine for end in pair),
    )
    most = max(map(len, found.values()))
    header = ["arm", *(f"bin {number + 1}" for number in range(most))]
    rows = [[arm, *(f"{sure:.2f} → {right:.2f}" for sure, right in mine)] for arm, mine in found.items()]
    grid = Grid("Confidence → accuracy of each bin", header, rows, folded=True)
    again = ["mmdistill query STUDY @calibration"]
    return Section("calibration", "Calibration", [drawn, grid], again=again)


def _bin_rows(bins: list[tuple[float, float]], of: str) -> list[dict[str, Any]]:
    return [{"of": of, "confidence": sure, "accuracy": right} for sure, right in bins]
