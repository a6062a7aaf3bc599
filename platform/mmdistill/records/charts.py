"""What the page Custom Scalars of TensorBoard shows, from ``dashboards/tensorboard/layout.toml``."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import mmdistill

LAYOUT = Path(mmdistill.__file__).parent / "dashboards" / "tensorboard" / "layout.toml"


class Chart(NamedTuple):
    """One chart.

    Attributes:
        curves: patterns of the tags it draws, a line per run and tag; none where it draws an interval.
        interval: the curve whose mean it draws in its interval; None where it draws ``curves``.
    """

    title: str
    curves: tuple[str, ...] = ()
    interval: str | None = None


class Category(NamedTuple):
    """Charts under one heading."""

    title: str
    charts: tuple[Chart, ...]


def layout(score: str, having: Collection[str]) -> list[Category]:
    """Return the categories of a study.

    Args:
        score: the metric that is reported.
        having: what arms of the study have, as ``only`` of the file names it.
    """
    tree = tomllib.loads(LAYOUT.read_text("utf-8"))
    return [
        Category(entry["title"], tuple(_chart(chart, score) for chart in entry["chart"]))
        for entry in tree["category"]
        if entry.get("only") in {None, *having}
    ]


def _chart(entry: dict[str, Any], score: str) -> Chart:
    def filled(text: str) -> str:
        return text.replace("{score}", score)

    interval = entry.get("interval")
    curves = tuple(filled(pattern) for pattern in entry.get("curves", ()))
    return Chart(filled(entry["title"]), curves, None if interval is None else filled(interval))
