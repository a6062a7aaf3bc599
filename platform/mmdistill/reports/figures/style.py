"""How all figures look: column width, colours that colour-blind people tell apart, fonts that stay text."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdistill.statistics import Verdict

COLUMN, PAGE = 3.4, 7.0
"""Width of one column and of a page of text, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000")
"""Okabe and Ito (2008), its yellow replaced by a wine red that shows on white."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
GREY = "#767676"
VERDICTS: dict[Verdict | None, str] = {
    "helps": "#0072B2",
    "harms": "#D55E00",
    "equivalent": "#009E73",
    "cannot tell": GREY,
    None: GREY,
}
"""Each verdict has a marker of its own too, and so has what nobody judged."""
MARKERS: dict[Verdict | None, str] = {
    "helps": "^",
    "harms": "v",
    "equivalent": "s",
    "cannot tell": "o",
    None: "D",
}
MAP = "viridis"

_SETTINGS: dict[str, Any] = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "savefig.dpi": 300,
    # A name with a dollar sign is a name, and no formula.
    "text.parse_math": False,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and save in the style of the figures."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # What the font lacks is drawn as a box; that is no reason to draw nothing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; nothing else keeps it alive."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(
    count: int, *, width: float = PAGE, height: float = 1.5, most: int = 4
) -> tuple[Figure, list[Axes]]:
    """Return a figure with that many panels, ``most`` in a row, on common axes."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure = new_figure(
        width * columns / most if count > 1 else COLUMN, max(height * rows + 0.5, 2.2 * (count == 1))
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    for last in axes[max(count - columns, 0) : count]:
        last.tick_params(labelbottom=True)
    return figure, axes[:count]


def rendered(figure: Figure, layout: str) -> bytes:
    """Return a figure as a file, ``pdf`` or ``png``; the same figure gives the same bytes."""
    # A date would make every file a new one.
    metadata = {"CreationDate": None} if layout == "pdf" else {"Software": None}
    content = io.BytesIO()
    figure.savefig(content, format=layout, metadata=metadata)
    # Where everything stands is found by drawing it; once is enough.
    figure.set_layout_engine("none")
    return content.getvalue()


def text_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever reads better on a colour (WCAG 2 relative luminance)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in list(colour)[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def shown(name: str, limit: int = 34) -> str:
    """Return a name as it fits beside an axis: printable, and long ones without their middle."""
    clean = "".join(letter if letter.isprintable() else " " for letter in name)
    return clean if len(clean) <= limit else f"{clean[: limit // 2 - 1]}…{clean[-(limit - limit // 2) :]}"
