"""Racing: lanes of a cohort that fall behind are stopped early.

Axes: K lanes, E epochs.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from mmdistill.settings import Settings


class RaceSettings(Settings):
    """How the lanes of one cohort race on their validation curves.

    Attributes:
        kind: ``halving`` keeps the best 1/factor of the lanes, rounded up, at epochs first, first * factor,
            ... (successive halving, Jamieson and Talwalkar 2016); ``median`` stops from epoch ``first`` on a
            lane whose best value so far is worse than the median of the running averages of all lanes
            (Golovin et al. 2017); a stopped lane counts with its average until then.
        first: epochs before the first decision.
        factor: of successive halving.
    """

    kind: Literal["halving", "median"]
    first: Annotated[int, Field(ge=1)] = 5
    factor: Annotated[int, Field(ge=2, le=10)] = 3


def survivors(race: RaceSettings, criteria_KE: Sequence[Sequence[float]]) -> list[int]:
    """Return the lanes that go on after an epoch, ascending; at least one.

    Lanes are compared by their best value so far, ties by their order. A lane whose last value is not finite
    goes on only where no lane has a finite one, and then it is the first lane.

    Args:
        race: the rules.
        criteria_KE: of every lane what it is judged by after each epoch, lower is better; the curves of lanes
            that were stopped earlier are shorter than those of the others.
    """
    epochs = max(len(curve) for curve in criteria_KE)
    racing = [k for k, curve in enumerate(criteria_KE) if len(curve) == epochs]
    decides = _is_rung(race, epochs) if race.kind == "halving" else epochs >= race.first
    if not decides:
        return racing
    finite = [k for k in racing if math.isfinite(criteria_KE[k][-1])] or racing[:1]
    best = {k: _best(criteria_KE[k]) for k in finite}
    if race.kind == "halving":
        ranked = sorted(finite, key=lambda k: (best[k], k))
        return sorted(ranked[: math.ceil(len(racing) / race.factor)])
    limit = statistics.median(_average(curve) for curve in criteria_KE)
    return [k for k in finite if best[k] <= limit]


def _is_rung(race: RaceSettings, epochs: int) -> bool:
    rung = race.first
    while rung < epochs:
        rung *= race.factor
    return rung == epochs


def _best(curve: Sequence[float]) -> float:
    return min((value for value in curve if math.isfinite(value)), default=math.inf)


def _average(curve: Sequence[float]) -> float:
    mean = math.fsum(curve) / len(curve) if all(map(math.isfinite, curve)) else math.inf
    # Rounding must not lift the best value of a flat curve above its average.
    return max(mean, _best(curve))
