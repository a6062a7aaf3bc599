"""What the trials of a search are ranked by, read from their metrics; lower is better."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Criterion(NamedTuple):
    """One metric, minimised as ``offset + factor * value``.

    Attributes:
        metric: name of the metric.
        name: of what is minimised, for people.
    """

    metric: str
    name: str
    offset: float
    factor: float

    def of(self, value: float) -> float:
        """Return what is minimised for a value of the metric."""
        return self.offset + self.factor * value

    def in_metrics(self, metrics: Mapping[str, float] | None) -> float | None:
        """Return what is minimised; None where the metric is missing or not finite."""
        value = (metrics or {}).get(self.metric)
        return None if value is None or not math.isfinite(value) else self.of(value)


CRITERIA = {
    "classification": Criterion("log_loss", "log-loss", 0.0, 1.0),
    "regression": Criterion("ccc", "1 - CCC", 1.0, -1.0),
}
