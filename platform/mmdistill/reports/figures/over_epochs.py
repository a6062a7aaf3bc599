"""Curves over epochs, of the arms a figure shows."""

from collections.abc import Mapping

from mmdistill.reports import series
from mmdistill.reports.figures.base import Sources
from mmdistill.reports.series import Band


def names_of_curves(sources: Sources) -> list[str]:
    """Return the curves that confirmed runs left, sorted."""
    return series.names_of_curves(sources.tables["epochs"])


def bands(sources: Sources, name: str) -> dict[str, Band]:
    """Return the band of one curve per arm, over its confirmed runs; arms without the curve are left out."""
    return series.bands(sources.readings, sources.confirmed(), sources.tables["epochs"], name)


def all_bands(sources: Sources, names: list[str]) -> dict[str, Mapping[str, Band]]:
    """Return the bands of several curves by name, empty ones left out."""
    found = {name: bands(sources, name) for name in names}
    return {name: by_arm for name, by_arm in found.items() if by_arm}
