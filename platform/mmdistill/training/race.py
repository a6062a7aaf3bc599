"""Racing: lanes of a cohort that fall behind are stopped early.

Axes: K lanes, E epochs.
"""

from typing import Annotated, Literal

from pydantic import Field

from mmdistill.settings import Settings


class RaceSettings(Settings):
    """How the lanes of one cohort race on their validation curves.

    Attributes:
        kind: ``halving`` keeps the best 1/factor of the lanes at epochs first, first * factor, ...
            (successive halving, Jamieson and Talwalkar 2016); ``median`` stops from epoch ``first`` on a lane
            whose best value so far is worse than the median of the running averages of all lanes (Golovin et
            al. 2017).
        first: epochs before the first decision.
        factor: of successive halving.
    """

    kind: Literal["halving", "median"]
    first: Annotated[int, Field(ge=1)] = 5
    factor: Annotated[int, Field(ge=2, le=10)] = 3
