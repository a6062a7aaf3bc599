"""Learning curves: one figure per curve, mean over seeds with its band."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdistill.errors import UnknownNameError
from mmdistill.registry import unknown_name
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.over_epochs import Band, bands, names_of_curves
from mmdistill.reports.figures.style import COLOURS, DASHES, GREY, panels, shown

# More lines than this in one panel hide each other.
_TOGETHER = 6
_USUAL = ("validation/accuracy", "validation/ccc", "validation/log_loss")


@FIGURES.register("curves")
def curves(sources: Sources) -> Mapping[str, Figure]:
    """Learning curves of the confirmed runs: mean per arm with its 95 % band."""
    known = names_of_curves(sources)
    if not known:
        raise NothingToDrawError("no confirmed run left a curve yet", "go on with `mmdistill run`")
    wrong = [unknown_name("curve", name, "--curve", known) for name in sources.curves if name not in known]
    if wrong:
        raise UnknownNameError(wrong)
    figures = {}
    for name in sources.curves or [name for name in _USUAL if name in known]:
        by_arm = bands(sources, name)
        if by_arm:
            figures[name.replace("/", "_")] = _figure(name, by_arm, sources.ablation.baseline)
    if not figures:
        raise NothingToDrawError("no arm to show has these curves", "name others with --curve or --rows")
    return figures


def _figure(name: str, by_arm: Mapping[str, Band], baseline: str) -> Figure:
    if len(by_arm) > _TOGETHER:
        return _small_multiples(name, by_arm, baseline)
    figure, (axes,) = panels(1)
    for place, (arm, band) in enumerate(by_arm.items()):
        _draw(axes, band, COLOURS[place], DASHES[place % len(DASHES)], shown(arm, 24))
    axes.set(xlabel="epoch", ylabel=name)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _small_multiples(name: str, by_arm: Mapping[str, Band], baseline: str) -> Figure:
    """Return a panel per arm, the baseline in each of them."""
    against = by_arm.get(baseline)
    arms = {arm: band for arm, band in by_arm.items() if arm != baseline}
    figure, places = panels(len(arms))
    for axes, (arm, band) in zip(places, arms.items(), strict=True):
        if against is not None:
            _draw(axes, against, GREY, "--", None)
        _draw(axes, band, COLOURS[0], "-", None)
        axes.set_title(shown(arm, 24))
    figure.supxlabel("epoch" if against is None else f"epoch (dashed: {shown(baseline)})", fontsize=7)
    figure.supylabel(name, fontsize=7)
    return figure


def _draw(axes: Axes, band: Band, colour: str, dash: object, label: str | None) -> None:
    epochs = range(len(band.mean_E))
    axes.fill_between(epochs, band.low_E, band.high_E, color=colour, alpha=0.2, linewidth=0)
    axes.plot(epochs, band.mean_E, color=colour, linestyle=dash, label=label)  # type: ignore[arg-type]
