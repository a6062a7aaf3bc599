"""What every kind of figure has in common: what it draws from, and how it says that it cannot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from mmdistill.registry import Registry
from mmdistill.reports.ablation import Ablation, ArmSummary, summarise_readings
from mmdistill.reports.readings import Readings, readings_of
from mmdistill.reports.series import confirmed


class NothingToDrawError(Exception):
    """The study does not hold what a figure shows.

    Attributes:
        rule: what is needed, and is not there.
        mend: how a study comes to hold it.
    """

    def __init__(self, rule: str, mend: str) -> None:
        self.rule, self.mend = rule, mend
        super().__init__(rule)


@dataclass
class Sources:
    """What figures are drawn from.

    Attributes:
        tables: of the study.
        names: the arms to show, in order; all by default.
        curves: names of the curves to show; the usual ones by default.
        beside: what further studies hold, to compare over data sets.
    """

    tables: Mapping[str, pa.Table]
    names: Sequence[str] = ()
    curves: Sequence[str] = ()
    beside: Sequence[Readings] = ()

    @cached_property
    def readings(self) -> Readings:
        """Return what the tables hold for the ablation."""
        return readings_of(self.tables)

    @cached_property
    def ablation(self) -> Ablation:
        """Return the summary that the table is printed from."""
        return summarise_readings(self.readings)

    @cached_property
    def arms(self) -> list[ArmSummary]:
        """Return the arms to show."""
        by_name = {arm.name: arm for arm in self.ablation.arms}
        return [by_name[name] for name in self.names] if self.names else list(self.ablation.arms)

    def confirmed(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Return the complete confirmation runs by arm, in order, and by trial."""
        found = confirmed(self.readings)
        return {arm.name: found[arm.name] for arm in self.arms if arm.name in found}


Draw = Callable[[Sources], Mapping[str, Figure]]
FIGURES: Registry[Draw] = Registry("figure")
"""Kinds by name. Each returns its figures by what the name of their file adds to the kind, often nothing, and
raises NothingToDrawError where the study has nothing to show; its docstring is its title."""
