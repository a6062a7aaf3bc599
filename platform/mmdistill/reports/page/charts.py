"""The charts of the page: Vega-Lite specs of ``dashboards/report/charts``, filled with words and rows."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmdistill.reports.dashboards import dashboard

Row = Mapping[str, Any]
_DIGITS = 5


class Chart(NamedTuple):
    """A chart, or one panel per arm of the same chart.

    Attributes:
        name: unique on the page.
        spec: Vega-Lite, without its data.
        label: what it shows, for who cannot see it.
        caption: how to read it.
        titles: of the panels; one empty title for a single one.
        panels: the rows of each panel.
        stacked: whether the panels stand below one another, whatever the room.
    """

    name: str
    spec: Mapping[str, Any]
    label: str
    caption: str
    titles: tuple[str, ...]
    panels: tuple[Sequence[Row], ...]
    stacked: bool = False
    kind: str = "chart"


def chart(
    source: str,
    panels: Mapping[str, Sequence[Row]],
    *,
    label: str,
    caption: str,
    name: str = "",
    stacked: bool = False,
    **words: Any,
) -> Chart:
    """Return the chart ``charts/<source>.vl.json`` of some panels by title.

    Args:
        source: file of the spec.
        panels: rows by title; numbers are rounded to 5 significant digits, NaN becomes null.
        label: what it shows, for who cannot see it.
        caption: how to read it.
        name: where one spec is drawn twice, what tells the charts apart.
        stacked: whether the panels stand below one another, whatever the room.
        words: what stands in the spec for ``"$word"``.
    """
    spec = _filled(json.loads(_text(source)), words)
    rows = tuple([_rounded(row) for row in found] for found in panels.values())
    return Chart(name or source, spec, label, caption, tuple(panels), rows, stacked)


def theme() -> dict[str, Any]:
    """Return the Vega-Lite configuration that all charts share."""
    found: dict[str, Any] = json.loads(dashboard("report", "charts", "theme.json").read_text("utf-8"))
    return found


@functools.cache
def _text(source: str) -> str:
    return dashboard("report", "charts", f"{source}.vl.json").read_text("utf-8")


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: entry if key == "$schema" else _filled(entry, words) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry, words) for entry in value]
    return words[value[1:]] if isinstance(value, str) and value.startswith("$") else value


def _rounded(row: Row) -> dict[str, Any]:
    return {key: _number(value) if isinstance(value, float) else value for key, value in row.items()}


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
