"""Learning curves: one figure per curve, mean over seeds with its band."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from mmdistill.errors import UnknownNameError
from mmdistill.registry import unknown_name
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.lines import Line, lines_of_arms
from mmdistill.reports.figures.over_epochs import bands, names_of_curves

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
        by_arm = {
            arm: Line(range(len(band.mean_E)), band.mean_E, band.low_E, band.high_E)
            for arm, band in bands(sources, name).items()
        }
        if by_arm:
            figures[name] = lines_of_arms(by_arm, sources.ablation.baseline, x="epoch", y=name)
    if not figures:
        raise NothingToDrawError("no arm to show has these curves", "name others with --curve or --rows")
    return figures
