"""Similarity matrices sorted by class, student beside teacher, and the plan that pairs their rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import MAP, PAGE, new_figure, shown

_ORDER = ("student", "teacher", "plan")
_TITLES = {"student": "student", "teacher": "teacher", "plan": "plan (teacher to student)"}


@FIGURES.register("similarity")
def similarity(sources: Sources) -> Mapping[str, Figure]:
    """Similarities between rows sorted by class, of student and teacher, beside the transport plan."""
    lines = sources.tables.get("matrices")
    if lines is None or not lines.num_rows:
        mend = "runs that are confirmed from this version on leave them"
        raise NothingToDrawError("no confirmed run left similarity matrices", mend)
    confirmed = sources.confirmed()
    figures = {}
    for arm in sources.arms:
        # Diverged runs leave matrices too.
        complete = pa.array(list(confirmed.get(arm.name, ())), pa.string())
        mine = lines.filter(pc.is_in(lines["trial_id"], complete))
        if "teacher" in set(mine["matrix"].to_pylist()):
            # A picture of one run: the mean of matrices of several seeds is that of no network.
            first = min(zip(mine["fold"].to_pylist(), mine["seed_index"].to_pylist(), strict=True))
            one = mine.filter(
                pc.and_(pc.equal(mine["fold"], first[0]), pc.equal(mine["seed_index"], first[1]))
            )
            figures[arm.name] = _figure(arm.name, one, first)
    if not figures:
        raise NothingToDrawError("no arm to show learns from features of a teacher", "add an arm that does")
    return figures


def _figure(arm: str, lines: pa.Table, run: tuple[int, int]) -> Figure:
    found = {name: lines.filter(pc.equal(lines["matrix"], name)).sort_by("place") for name in _ORDER}
    found = {name: table for name, table in found.items() if table.num_rows}
    figure = new_figure(PAGE * len(found) / 3, 2.2)
    for axes, (name, table) in zip(np.ravel(figure.subplots(1, len(found))), found.items(), strict=True):
        values_BB = np.array(table["values"].to_pylist())
        limits: dict[str, Any] = {"vmin": 0} if name == "plan" else {"vmin": -1, "vmax": 1}
        image = axes.imshow(values_BB, cmap="magma_r" if name == "plan" else MAP, **limits)
        _classes(axes, table["label"].to_pylist(), on_dark=name != "plan")
        axes.set_title(_TITLES[name])
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("share of the line's mass" if name == "plan" else "cosine similarity")
        bar.outline.set_linewidth(0.4)
    figure.supxlabel(
        f"{shown(arm, 60)}, fold {run[0]}, repetition {run[1]}; rows sorted by class", fontsize=7
    )
    return figure


def _classes(axes: Axes, labels: list[float], *, on_dark: bool) -> None:
    """Draw where one class ends and the next begins, and name the classes."""
    first = [n for n, label in enumerate(labels) if n == 0 or label != labels[n - 1]]
    # More than these, of a regression for instance, are a continuum.
    if len(first) > min(20, len(labels) / 2):
        axes.set(xticks=[], yticks=[])
        return
    for place in first[1:]:
        for line in (axes.axhline, axes.axvline):
            line(place - 0.5, color="white" if on_dark else "black", linewidth=0.3, alpha=0.6)
    middles = [(a + b - 1) / 2 for a, b in zip(first, [*first[1:], len(labels)], strict=True)]
    names = [f"{labels[n]:g}" for n in first]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
