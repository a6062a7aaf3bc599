"""Critical differences: mean ranks over data sets, and which arms are not told apart."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.style import COLOURS, PAGE, new_figure, shown
from mmdistill.reports.ranks import Ranks, ranks


@FIGURES.register("ranks")
def critical_differences(sources: Sources) -> Mapping[str, Figure]:
    """Mean ranks over the data sets of several studies; bars join arms that are not told apart."""
    found = ranks([sources.readings, *sources.beside])
    if found.critical_difference is None:
        mend = "name further studies, on other data, with --with; `mmdistill compare` prints their ranks"
        raise NothingToDrawError(found.reason or "there is nothing to rank", mend)
    return {"": _figure(found, found.critical_difference)}


def _figure(found: Ranks, critical_difference: float) -> Figure:
    # It brings pandas and statsmodels; no other figure waits for them.
    import pandas
    from scikit_posthocs import critical_difference_diagram

    names = [shown(arm) for arm in found.arms]
    together = np.eye(len(names))
    for clique in found.cliques:
        for a, b in combinations([found.arms.index(arm) for arm in clique], 2):
            together[a, b] = together[b, a] = 1
    figure = new_figure(PAGE, 1.1 + 0.16 * len(names))
    axes = figure.subplots()
    critical_difference_diagram(
        dict(zip(names, found.mean_ranks, strict=True)),
        pandas.DataFrame(together, index=names, columns=names),
        ax=axes,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        text_h_margin=0.02,
        color_palette=[COLOURS[place % len(COLOURS)] for place in range(len(names))],
        crossbar_props={"linewidth": 2, "marker": None},
        marker_props={"s": 12},
        elbow_props={"linewidth": 0.7},
    )
    text = (
        f"mean rank over {len(found.datasets)} data sets, 1 is best; critical difference "
        f"{critical_difference:.2f} (Nemenyi, .05), Friedman p = {found.friedman_p:.2g}"
    )
    figure.supxlabel(text, fontsize=7)
    return figure
