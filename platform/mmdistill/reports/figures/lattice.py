"""The lattice of teachers or modalities: the score of every subset, and what each part contributes."""

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmdistill.reports.contributions import Effect, Lattice
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import COLOURS, MAP, PAGE, new_figure, shown, text_on

# Three parts of 8 subsets each way are as many as can be read.
_MOST = 6
_MEASURES = {"add_one": "add-one", "shapley": "Shapley", "leave_one_out": "leave-one-out"}


@FIGURES.register("lattice")
def lattice(sources: Sources) -> Mapping[str, Figure]:
    """Score of every subset of the teachers or modalities, beside add-one, Shapley and leave-one-out."""
    names = {arm.name for arm in sources.arms}
    found = [one for one in sources.ablation.lattices if one.full in names and len(one.parts) <= _MOST]
    if not found:
        mend = f"add a design of the kind teacher_subsets or network_subsets, of at most {_MOST} parts"
        raise NothingToDrawError("no arms to show differ in their teachers or modalities alone", mend)
    frozen = {one.full for one in found if one.frozen is None}
    figures = {}
    for one in found:
        # The frozen reading of a lattice has the same full arm.
        suffix = one.full if one.frozen is None or one.full not in frozen else f"{one.full}_frozen"
        suffix = suffix if len({o.kind for o in found if o.full == one.full}) == 1 else f"{suffix}_{one.kind}"
        figures["" if len(found) == 1 else suffix] = _figure(sources, one)
    return figures


def _figure(sources: Sources, one: Lattice) -> Figure:
    columns = 2 ** (len(one.parts) - len(one.parts) // 2)
    figure = new_figure(PAGE, max(2.4, 0.9 + 0.45 * len(one.parts), 1.0 + 0.5 * 2 ** (len(one.parts) // 2)))
    left, right = figure.subplots(1, 2, width_ratios=[1 if columns < 4 else 1.4, 1])
    _heat_map(left, sources, one)
    _bars(right, sources.ablation.margin, one)
    scheme = sources.readings.schemes[one.full]
    thick, thin = f"thick over {scheme.replicate}", f"thin seeds x {scheme.unit}"
    right.set_xlabel(f"contribution to {sources.ablation.score_name}\n(95 %: {thick}, {thin})")
    reading = f", settings of {shown(one.frozen)}" if one.frozen else ""
    left.set_title(f"{sources.ablation.score_name} with these {_words(one.kind)}{reading}")
    handles = [Patch(color=COLOURS[n], label=title) for n, title in enumerate(_MEASURES.values())]
    handles.append(Patch(color="#000000", alpha=0.08, linewidth=0, label="within the margin"))
    figure.legend(handles=handles, loc="outside lower right", ncols=4)
    return figure


def _words(kind: str) -> str:
    return "modalities" if kind == "privileged" else kind


def _heat_map(axes: Axes, sources: Sources, one: Lattice) -> None:
    """Draw half of the parts down, the other half across; what has no arm stays empty."""
    names = [part.name for part in one.parts]
    down, across = names[: len(names) // 2], names[len(names) // 2 :]
    arms = {frozenset(cell.parts): cell.arm for cell in one.cells}
    rows, columns = _subsets(down), _subsets(across)
    values_RC = np.array([[_value(sources, arms[a | b]) for b in columns] for a in rows])
    image = axes.imshow(np.ma.masked_invalid(values_RC), cmap=MAP, aspect="auto")
    axes.set_facecolor("#DDDDDD")
    colours = mpl.colormaps[MAP]
    for r, c in product(range(len(rows)), range(len(columns))):
        value = values_RC[r, c]
        text = "no arm" if np.isnan(value) else f"{value:.3f}"
        colour = "black" if np.isnan(value) else text_on(mpl.colors.to_rgb(colours(image.norm(value))))
        axes.text(c, r, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), [_subset_text(subset, across) for subset in columns])
    axes.set_yticks(range(len(rows)), [_subset_text(subset, down) for subset in rows])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _subsets(parts: Sequence[str]) -> list[frozenset[str]]:
    """Return every subset; neighbours differ in one part where that is possible (Gray code)."""
    codes = (n ^ (n >> 1) for n in range(2 ** len(parts)))
    return [frozenset(part for k, part in enumerate(parts) if code >> k & 1) for code in codes]


def _subset_text(subset: frozenset[str], order: Sequence[str]) -> str:
    return "\n+ ".join(shown(part, 18) for part in order if part in subset) or "without"


def _value(sources: Sources, arm: str | None) -> float:
    return float("nan") if arm is None else sources.readings.score(arm).mean


def _bars(axes: Axes, margin: float, one: Lattice) -> None:
    axes.axvspan(-margin, margin, color="#000000", alpha=0.08, linewidth=0, zorder=0)
    axes.axvline(0, color="black", linewidth=0.6)
    height = 0.26
    for place, part in enumerate(one.parts):
        for n, measure in enumerate(_MEASURES):
            _bar(axes, place + (n - 1) * height, getattr(part, measure), COLOURS[n], height)
    axes.set_yticks(range(len(one.parts)), [shown(part.name) for part in one.parts])
    axes.set_ylim(len(one.parts) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    # Labels with a sign and three digits: more of them would run into each other.
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _bar(axes: Axes, y: float, effect: Effect, colour: str, height: float) -> None:
    """Draw a contribution with its interval over replicates, thick, and over units, thin."""
    if effect.claim is None:
        axes.text(0, y, f" {shown(effect.reason or '', 60)}", va="center", fontsize=5.5)
        return
    axes.barh(y, effect.claim.seeds.mean, height * 0.9, color=colour, alpha=0.75)
    for interval, width in ((effect.claim.crossed, 0.7), (effect.claim.seeds, 2.0)):
        if not np.isnan(interval.low):
            axes.plot([interval.low, interval.high], [y, y], color="black", linewidth=width)
