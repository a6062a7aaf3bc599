"""Intervals, paired tests and verdicts; NumPy and SciPy only.

Axes: A arms, C contrasts, K bootstrap draws, R runs, S seeds, U test units, Q additive moments (the first
counts rows), N values.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from mmdistill.randomness import numpy_generator

Array = npt.NDArray[np.float64]
Verdict = Literal["helps", "harms", "equivalent", "cannot tell"]
Score = Callable[[Array], Array]
"""Additive moments ``[..., Q]`` to one score ``[...]``."""

ALPHA = 0.05
# 2**16 sign patterns of 16 numbers are 8 MB; a t test is as good beyond.
EXACT_UP_TO = 16
# Points of the integral over the estimated spread; power is right to three digits.
_GRID = 2000


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval; the ends are NaN where ``n`` is too small."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: npt.ArrayLike, *, level: float = 0.95, test_share: float = 0.0) -> Interval:
    """Return the mean of independent values with its Student t interval.

    Args:
        values: N numbers; one number has no interval, none has no mean.
        level: coverage, in (0, 1).
        test_share: test rows per training row when the values come from overlapping training sets; adds
            that much to the 1/n of the variance (Nadeau and Bengio, 2003, equation 9).
    """
    values_N = np.asarray(values, dtype=np.float64)
    n = values_N.size
    mean = float(values_N.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = _quantile(0.5 + level / 2, n - 1) * _standard_error(values_N, test_share)
    return Interval(mean, mean - half, mean + half, n)


@lru_cache(maxsize=256)
def _quantile(p: float, df: int) -> float:
    return float(stats.t.ppf(p, df))


def _standard_error(values_N: Array, test_share: float) -> float:
    return math.sqrt((1 / values_N.size + test_share) * float(values_N.var(ddof=1)))


def ratio_of_means(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, level: float = 0.95, test_share: float = 0.0
) -> Interval:
    """Return the ratio of the means of two paired samples with its interval (Fieller, 1954).

    The ends are NaN where the denominators' own interval includes 0: the ratio may be anything then.

    Args:
        numerators: N numbers.
        denominators: N numbers, paired with them.
        level: coverage, in (0, 1).
        test_share: as in :func:`t_interval`.
    """
    both_2N = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)])
    n = both_2N.shape[1]
    above, below = both_2N.mean(axis=1) if n else (math.nan, math.nan)
    mean = float(above / below) if below else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    spread = (1 / n + test_share) * float(stats.t.ppf(0.5 + level / 2, n - 1)) ** 2 * np.cov(both_2N)
    # Every ratio r with |mean(x - r y)| <= t * its standard error: the roots of a quadratic.
    square, middle = below**2 - spread[1, 1], above * below - spread[0, 1]
    if square <= 0:
        return Interval(mean, math.nan, math.nan, n)
    half = math.sqrt(max(middle**2 - square * (above**2 - spread[0, 0]), 0.0))
    return Interval(mean, float((middle - half) / square), float((middle + half) / square), n)


def t_test(differences: npt.ArrayLike, *, test_share: float = 0.0) -> float:
    """Return the two-sided p of Student's paired t test; NaN below two differences."""
    values_N = np.asarray(differences, dtype=np.float64)
    if values_N.size < 2:
        return math.nan
    error, mean = _standard_error(values_N, test_share), float(values_N.mean())
    # Rounding must not turn equal differences into a spread of 1e-19.
    if error <= 1e-12 * max(abs(mean), 1e-300):
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, values_N.size - 1))


def corrected_resampled_t(
    differences_per_fold: npt.ArrayLike, test_share: float, *, level: float = 0.95
) -> tuple[Interval, float]:
    """Return interval and p of the corrected resampled t test (Nadeau and Bengio, 2003).

    Args:
        differences_per_fold: one paired difference per fold, seeds already averaged.
        test_share: test rows per training row, 1/(k - 1) in k-fold cross-validation.
        level: coverage of the interval, in (0, 1).
    """
    interval = t_interval(differences_per_fold, level=level, test_share=test_share)
    return interval, t_test(differences_per_fold, test_share=test_share)


def sign_flip_test(differences: npt.ArrayLike) -> float:
    """Return the two-sided p of the paired sign-flip test on the mean.

    Exact over all 2**n sign patterns up to n = 16, Student's t beyond; 1 without differences. The smallest
    value it can take is :func:`mmdistill.few_pairs.smallest_p`.
    """
    values_N = np.asarray(differences, dtype=np.float64)
    if values_N.size > EXACT_UP_TO:
        return t_test(values_N)
    patterns = np.arange(2**values_N.size)[:, None] >> np.arange(values_N.size)
    totals = np.abs((1.0 - 2.0 * (patterns & 1)) @ values_N)
    # Equal totals may differ in the last bits, summed in another order.
    observed = abs(float(values_N.sum())) - 1e-12 * float(np.abs(values_N).sum())
    return float((totals >= observed).mean())


def detectable_difference(
    n: int, *, level: float = ALPHA, power: float = 0.8, test_share: float = 0.0
) -> float:
    """Return the smallest mean paired difference a two-sided t test finds, in sd of the differences.

    Infinite below two differences.

    Args:
        n: paired differences.
        level: of the test, in (0, 1); the first step of Holm for m contrasts is .05 / m.
        power: probability of finding it, in (level, 1).
        test_share: test rows per training row where training sets overlap, see :func:`t_interval`.
    """
    if n < 2:
        return math.inf
    critical = float(stats.t.ppf(1 - level / 2, n - 1))
    error = math.sqrt(1 / n + test_share)
    # The noncentral t as a mean over the estimated spread: SciPy's own is NaN in parts of its range.
    grid = (np.arange(_GRID) + 0.5) / _GRID
    bound = critical * np.sqrt(stats.chi2.ppf(grid, n - 1) / (n - 1))

    def missing(difference: float) -> float:
        shift = difference / error
        return float((stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift)).mean()) - power

    high = error
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values in the given order; NaN counts as 1."""
    p_N = np.nan_to_num(np.asarray(pvalues, dtype=np.float64), nan=1.0)
    order = np.argsort(p_N, kind="stable")
    steps = np.maximum.accumulate(p_N[order] * np.arange(p_N.size, 0, -1))
    adjusted = np.empty_like(p_N)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(p) for p in adjusted]


def false_discovery(pvalues: Sequence[float]) -> list[float]:
    """Return Benjamini-Hochberg adjusted p-values in the given order; NaN counts as 1."""
    if not pvalues:
        return []
    p_N = np.nan_to_num(np.asarray(pvalues, dtype=np.float64), nan=1.0)
    return [float(p) for p in stats.false_discovery_control(p_N)]


class Bootstrap(NamedTuple):
    """Draws of a paired difference under resampling of seeds and test units at once.

    Attributes:
        estimate: the difference on the data as they are.
        draws_K: the difference on every draw, its spread corrected by n / (n - 1) of seeds and units.
        freedom: degrees of freedom of the spread (Satterthwaite); NaN where no interval exists.
        seeds: how many seeds were resampled.
    """

    estimate: float
    draws_K: Array
    freedom: float
    seeds: int

    def interval(self, level: float = 0.95) -> Interval:
        """Return the percentile interval, widened about the estimate by t / z for the degrees of freedom.

        Percentiles alone cover too little with few seeds: .90 instead of .95 at ten, .85 at three.
        """
        if math.isnan(self.freedom):
            return Interval(self.estimate, math.nan, math.nan, self.seeds)
        tail = 0.5 + level / 2
        widening = float(stats.t.ppf(tail, self.freedom) / stats.norm.ppf(tail))
        low, high = np.quantile(self.draws_K, [1 - tail, tail])
        ends = [self.estimate + widening * (float(end) - self.estimate) for end in (low, high)]
        return Interval(self.estimate, ends[0], ends[1], self.seeds)


def crossed_score_bootstrap(
    arm_RUQ: Array,
    against_RUQ: Array,
    seed_R: npt.NDArray[np.int64],
    score: Score,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """Return the bootstrap of the mean score difference of paired runs, for scores of additive moments.

    Seeds and units are resampled at once, each weighed by multinomial counts: the pigeonhole bootstrap of
    Owen (2007).
    On each draw a run's score is that of its moments summed over resampled units, and the run counts by its
    resampled seed and by the resampled share of its rows, so that folds of one unit are resampled as units.
    One seed with several runs (folds) resamples units only; one run or one unit has no interval.

    Args:
        arm_RUQ: moments of the arm's runs per unit; moment 0 is the number of rows.
        against_RUQ: the same of the runs compared with, over the same runs, units and row counts.
        seed_R: the seed of each run, as 0 .. S - 1; equal numbers are resampled together.
        score: from moments to the score, such as :func:`ratio` or :func:`concordance`.
        draws: resamples, K.
        seed: of the resampling itself.
    """
    both_ARUQ = np.stack([arm_RUQ, against_RUQ])
    return crossed_contrasts_bootstrap(both_ARUQ, [[1, -1]], seed_R, score, draws=draws, seed=seed)[0]


def crossed_contrasts_bootstrap(
    moments_ARUQ: Array,
    weight_CA: npt.ArrayLike,
    seed_R: npt.NDArray[np.int64],
    score: Score,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> list[Bootstrap]:
    """Return the bootstrap of weighted sums of mean scores of several arms, one per row of weights.

    As :func:`crossed_score_bootstrap`, whose difference is the row (1, -1). All arms share the resamples.

    Args:
        moments_ARUQ: moments of every arm's runs per unit, over the same runs, units and row counts.
        weight_CA: weight of each arm in each sum; the weights of a contrast add up to 0.
        seed_R: the seed of each run, as 0 .. S - 1.
        score: from moments to the score.
        draws: resamples, K.
        seed: of the resampling itself.
    """
    weights_CA = np.asarray(weight_CA, dtype=np.float64)
    runs, units = moments_ARUQ.shape[1:3]
    seeds = int(seed_R.max()) + 1 if runs else 0
    one_R, one_U = np.ones((1, runs)), np.ones((1, units))

    def summed(run_KR: Array, unit_KU: Array) -> Array:
        means_AK = [_mean_score(moments_RUQ, score, run_KR, unit_KU) for moments_RUQ in moments_ARUQ]
        return np.asarray(weights_CA @ np.stack(means_AK))

    estimate_C = summed(one_R, one_U)[:, 0] if runs else np.full(len(weights_CA), math.nan)
    if runs < 2 or units < 2:
        return [Bootstrap(float(one), np.full(draws, math.nan), math.nan, seeds) for one in estimate_C]
    unit_KU, seed_KS = _resampled(units, draws, seed, "units"), _resampled(seeds, draws, seed, "seeds")
    seed_KR = seed_KS[:, seed_R]
    draws_CK = summed(seed_KR, unit_KU)
    seed_variance_C, unit_variance_C = summed(seed_KR, one_U).var(axis=1), summed(one_R, unit_KU).var(axis=1)
    found = []
    for estimate, draws_K, *variances in zip(
        estimate_C.tolist(), draws_CK, seed_variance_C.tolist(), unit_variance_C.tolist(), strict=True
    ):
        scale, freedom = _small_sample((variances[0], seeds), (variances[1], units))
        found.append(Bootstrap(estimate, estimate + scale * (draws_K - estimate), freedom, seeds))
    return found


def _mean_score(moments_RUQ: Array, score: Score, run_KR: Array, unit_KU: Array) -> Array:
    """Return the weighted mean score of each draw; either weight may have one row for all draws."""
    moments_KRQ = _weighted(unit_KU, moments_RUQ)
    weight_KR = run_KR * moments_KRQ[..., 0] / np.maximum(moments_RUQ[..., 0].sum(axis=1), 1)
    total_K = weight_KR.sum(axis=1)
    sum_K = (weight_KR * score(moments_KRQ)).sum(axis=1)
    # A draw may miss every unit of every drawn run only in tables of a few cells.
    mean_K: Array = np.divide(sum_K, total_K, out=np.zeros_like(sum_K), where=total_K > 0)
    return mean_K


def _weighted(unit_KU: Array, moments_RUQ: Array) -> Array:
    runs, units, moments = moments_RUQ.shape
    flat = unit_KU @ moments_RUQ.transpose(1, 0, 2).reshape(units, runs * moments)
    return flat.reshape(-1, runs, moments)


@lru_cache(maxsize=4)
def _resampled(count: int, draws: int, seed: int, role: str) -> Array:
    """Return how often each of ``count`` items is drawn in ``draws`` resamples of that size.

    Kept, because all comparisons of a study share their resamples.
    """
    generator = numpy_generator(seed, "bootstrap", role)
    picks = generator.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    drawn: Array = (
        np.bincount(picks.ravel(), minlength=draws * count).astype(np.float64).reshape(draws, count)
    )
    drawn.flags.writeable = False
    return drawn


def _small_sample(*parts: tuple[float, int]) -> tuple[float, float]:
    """Return what resampling n items owes the spread, and Satterthwaite's degrees of freedom of the sum.

    Resampled variances are (n - 1) / n of what they estimate; each part is such a variance with its n.
    """
    varied = [(variance, n) for variance, n in parts if n > 1 and variance > 0]
    if not varied:
        return 1.0, math.inf
    total = sum(variance for variance, _ in varied)
    unbiased = sum(variance * n / (n - 1) for variance, n in varied)
    freedom = total**2 / sum(variance**2 / (n - 1) for variance, n in varied)
    return math.sqrt(unbiased / total), freedom


def ratio(moments_Q: Array) -> Array:
    """Return moment 1 per row, e.g. hits per row = accuracy; 0 without rows."""
    rows = moments_Q[..., 0]
    return np.divide(moments_Q[..., 1], rows, out=np.zeros_like(rows), where=rows > 0)


def concordance(moments_Q: Array) -> Array:
    """Return Lin's (1989) concordance correlation in population form, the mean over targets.

    Args:
        moments_Q: rows, then for each target the sums of x, y, x*x, y*y, x*y; centre x and y beforehand.

    Returns:
        Values in [-1, 1]; 0 where a prediction or the truth does not vary.
    """
    rows = np.maximum(moments_Q[..., 0], 1e-300)
    targets = (moments_Q.shape[-1] - 1) // 5
    sums = moments_Q[..., 1:].reshape(*moments_Q.shape[:-1], targets, 5) / rows[..., None, None]
    x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    covariance = xy - x * y
    spread = (xx - x * x) + (yy - y * y) + (x - y) ** 2
    value = np.divide(2 * covariance, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return np.asarray(value.mean(axis=-1))


def verdict(
    wide: Sequence[Interval], narrow: Sequence[Interval], *, margin: float, p: float = 0.0
) -> Verdict:
    """Return what the intervals of one paired difference (higher is better) allow to say.

    1. "equivalent" when every 90 % interval lies inside (-margin, margin): two one-sided tests at .05, for
       whose number nothing is adjusted. It goes first: the margin is the smallest difference the study calls
       one.
    2. "helps" ("harms") when every 95 % interval lies above (below) 0 and the adjusted p is below .05.
    3. "cannot tell" otherwise, also where an interval does not exist.

    Args:
        wide: 95 % intervals, over seeds and over seeds x test units.
        narrow: their 90 % counterparts.
        margin: smallest difference that matters, in the units of the score, > 0.
        p: adjusted p-value of the difference; NaN counts as 1.
    """
    if all(-margin < i.low and i.high < margin for i in narrow):
        return "equivalent"
    if p < ALPHA and all(i.low > 0 for i in wide):
        return "helps"
    if p < ALPHA and all(i.high < 0 for i in wide):
        return "harms"
    return "cannot tell"
