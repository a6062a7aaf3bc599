"""Everything the tables of a study answer, computed once for all that shows it."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from mmdistill.reports.ablation import Ablation, summarise_readings
from mmdistill.reports.readings import Readings, readings_of
from mmdistill.reports.render_curves import Curves, curves_of


class Answers(NamedTuple):
    """The answers of a study, and the tables they are from."""

    tables: Mapping[str, pa.Table]
    readings: Readings
    ablation: Ablation
    curves: Curves


def answers_of(tables: Mapping[str, pa.Table]) -> Answers:
    """Return the answers of a study from its tables."""
    readings = readings_of(tables)
    return Answers(tables, readings, summarise_readings(readings), curves_of(readings, tables))
