"""Selection shares: which teacher was listened to, epoch by epoch."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.over_epochs import all_bands, names_of_curves
from mmdistill.reports.figures.style import COLOURS, panels, shown

_PREFIX = "selection/"


@FIGURES.register("selection")
def selection(sources: Sources) -> Mapping[str, Figure]:
    """Share of choices by teacher over the epochs of the confirmed runs, mean over seeds, by arm."""
    found = all_bands(sources, [name for name in names_of_curves(sources) if name.startswith(_PREFIX)])
    arms = [arm.name for arm in sources.arms if any(arm.name in by_arm for by_arm in found.values())]
    if not arms:
        mend = "it takes several teachers and a term that looks at one of them, e.g. recipe mt_pkdot"
        raise NothingToDrawError("no arm to show selects among teachers", mend)
    teachers = sorted(name.removeprefix(_PREFIX) for name in found)
    figure, places = panels(len(arms), most=min(len(arms), 4))
    for axes, arm in zip(places, arms, strict=True):
        mine = {t: found[_PREFIX + t][arm].mean_E for t in teachers if arm in found[_PREFIX + t]}
        length = max(map(len, mine.values()))
        shares_TE = [np.pad(share_E, (0, length - len(share_E))) for share_E in mine.values()]
        colours = [COLOURS[teachers.index(t) % len(COLOURS)] for t in mine]
        axes.stackplot(range(length), shares_TE, colors=colours, linewidth=0.4, edgecolor="white")
        axes.set_title(shown(arm, 27))
        axes.set(xlim=(0, max(length - 1, 1)), ylim=(0, 1))
    handles = [
        axes.fill_between([], [], [], color=COLOURS[n % len(COLOURS)], label=shown(t))
        for n, t in enumerate(teachers)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(teachers), 6))
    figure.supxlabel("epoch", fontsize=7)
    figure.supylabel("share of choices", fontsize=7)
    return {"": figure}
