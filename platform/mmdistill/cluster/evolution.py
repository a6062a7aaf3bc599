"""CMA-ES (Hansen 2016) replayed from results: no state is kept between generations.

Axes: N samples, D searched intervals, each mapped to [0, 1].
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from cmaes import CMA, get_warm_start_mgd

# Where a start says nothing: the middle, so that an interval is three standard deviations to either side.
_SIGMA = 1 / 6
# Share of the start that the first distribution is fitted to.
_BEST = 0.25

# Positions in [0, 1], and what the trial is ranked by; none if it failed.
Result = tuple[Sequence[float], float | None]


def evolved(
    start: Sequence[Result], later: Sequence[Result], dimensions: int, count: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return the next samples, in [0, 1) [N, D].

    The first distribution is fitted to the best of the start (warm start: Nomura et al. 2021). Then every
    full population of the later results moves it, in the order of their numbers; the population size is that
    of Hansen, 4 + 3 ln D rounded down, whatever the size of a generation.

    Args:
        start: results that CMA-ES did not propose.
        later: results that it proposed, in order.
        dimensions: D; with none there is nothing to return but the shape.
        count: N.
        seed: of the samples; what was learned does not depend on it.
    """
    if dimensions == 0:
        return np.zeros((count, 0))
    mean_D, sigma, cov_DD = _warm_start(start, dimensions)
    size = 4 + math.floor(3 * math.log(dimensions))
    bounds = np.tile([0.0, 1.0], (dimensions, 1))
    optimiser = CMA(mean_D, sigma, bounds=bounds, seed=seed, population_size=size, cov=cov_DD)
    for begin in range(0, len(later) - size + 1, size):
        population = [(np.asarray(x), _loss(value)) for x, value in later[begin : begin + size]]
        if any(math.isfinite(value) for _, value in population):
            optimiser.tell(population)
    samples_ND = np.stack([optimiser.ask() for _ in range(count)])
    clipped_ND: npt.NDArray[np.float64] = np.clip(samples_ND, 0.0, np.nextafter(1.0, 0.0))
    return clipped_ND


def _warm_start(
    start: Sequence[Result], dimensions: int
) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.float64] | None]:
    known = [(np.asarray(x), value) for x, value in start if value is not None]
    if not known:
        return np.full(dimensions, 0.5), _SIGMA, None
    # At least one: the share is rounded down.
    share = min(max(_BEST, (1 + 1e-9) / len(known)), 1.0)
    mean_D, sigma, cov_DD = get_warm_start_mgd(known, gamma=share, alpha=_SIGMA)
    return np.clip(mean_D, 0.0, 1.0), float(sigma), cov_DD


def _loss(value: float | None) -> float:
    """Return what a failure counts as: worse than everything."""
    return math.inf if value is None else value
