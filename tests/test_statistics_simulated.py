"""What the statistics promise, by simulation: coverage, false positives and power against nominal values.

Every bound is the binomial one at 1 in 1000 for the nominal value and the number of simulations.
"""

import numpy as np
import pytest
from scipy import stats

from mmdistill.statistics import (
    corrected_resampled_t,
    detectable_difference,
    holm,
    ratio_of_means,
    sign_flip_test,
    t_interval,
)


def bounds(times, nominal):
    """Return the least and the most hits to expect."""
    return stats.binom.ppf([0.0005, 0.9995], times, nominal)


def is_nominal(hits, nominal):
    least, most = bounds(len(hits), nominal)
    return bool(least <= np.sum(hits) <= most)


@pytest.mark.parametrize(("n", "level"), [(3, 0.95), (10, 0.95), (10, 0.90)])
def test_t_intervals_cover_their_level(n, level):
    samples = np.random.default_rng(n).normal(0.3, 2.0, (2000, n))
    found = [t_interval(sample, level=level) for sample in samples]
    assert is_nominal([i.low <= 0.3 <= i.high for i in found], level)


def test_a_percentile_bootstrap_of_five_would_not():
    # Why seed intervals are Student's: the bootstrap waits for n = 20.
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((1000, 5))
    drawn = samples[np.arange(1000)[:, None, None], rng.integers(5, size=(1000, 500, 5))].mean(axis=2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    covered = np.sum((low <= 0) & (high >= 0))
    assert covered < bounds(1000, 0.95)[0]
    assert covered < bounds(1000, 0.90)[1]


@pytest.mark.parametrize("n", [6, 10])
def test_the_sign_flip_test_is_exact_for_any_symmetric_spread(n):
    # Heavy tails of Student's t with two degrees of freedom, which have no variance.
    samples = np.random.default_rng(n).standard_t(2, (2000, n))
    false = [sign_flip_test(sample) < 0.05 for sample in samples]
    # With n pairs p is a multiple of 2 / 2 ** n: the nearest level below .05 is what it keeps.
    steps = np.ceil(0.05 * 2 ** (n - 1)) - 1
    assert is_nominal(false, steps / 2 ** (n - 1))


def test_holm_keeps_the_error_of_the_family_and_more_power_than_bonferroni():
    rng = np.random.default_rng(3)
    p_KM = stats.norm.sf(rng.standard_normal((2000, 5)))
    first = [min(holm(p_M.tolist())) < 0.05 for p_M in p_KM]
    assert is_nominal(first, 1 - 0.99**5)
    # Three real effects: the two null ones still err as a family at no more than .05.
    p_KM[:, :3] = stats.norm.sf(rng.standard_normal((2000, 3)) + 4)
    adjusted = np.array([holm(p_M.tolist()) for p_M in p_KM])
    assert np.sum(adjusted[:, 3:].min(axis=1) < 0.05) <= bounds(2000, 0.05)[1]
    assert np.mean(adjusted[:, :3] < 0.05) > np.mean(p_KM[:, :3] * 5 < 0.05)


def test_fieller_covers_the_ratio_of_means():
    rng, n = np.random.default_rng(4), 10
    shared = rng.normal(0, 0.02, (2000, 1, n))
    both = np.array([[[0.06], [0.15]]]) + rng.normal(0, 0.03, (2000, 2, n)) + shared
    found = [ratio_of_means(above, below) for above, below in both]
    assert is_nominal([i.low <= 0.4 <= i.high for i in found if not np.isnan(i.low)], 0.95)
    assert np.mean([np.isnan(i.low) for i in found]) < 0.01


def test_fieller_follows_its_definition():
    # Its ends are the ratios r at which the t interval of x - r y just touches 0.
    rng = np.random.default_rng(5)
    above, below = rng.normal(1, 0.5, 8), rng.normal(3, 0.5, 8)
    found = ratio_of_means(above, below, test_share=0.1)
    assert found.mean == pytest.approx(above.mean() / below.mean())
    assert t_interval(above - found.low * below, test_share=0.1).low == pytest.approx(0, abs=1e-9)
    assert t_interval(above - found.high * below, test_share=0.1).high == pytest.approx(0, abs=1e-9)


def test_a_ratio_over_what_may_be_nothing_has_no_interval():
    assert np.isnan(ratio_of_means([0.1, 0.2, 0.1], [0.1, -0.1, 0.05]).low)
    assert np.isnan(ratio_of_means([0.1], [0.1]).low)
    assert np.isnan(ratio_of_means([], []).mean)


def test_overlapping_folds_err_less_with_the_correction_than_without():
    # Ten folds whose differences share what nine tenths of the training rows have in common.
    rng, k = np.random.default_rng(6), 10
    shared = np.sqrt(1 / k) * rng.standard_normal((2000, 1))
    folds = shared + np.sqrt(1 - 1 / k) * rng.standard_normal((2000, k))
    plain, corrected = (
        np.array([corrected_resampled_t(fold, share)[1] < 0.05 for fold in folds]) for share in (0.0, 1 / 9)
    )
    assert plain.sum() > bounds(2000, 0.05)[1]
    assert corrected.sum() <= bounds(2000, 0.05)[1]


def test_ten_pairs_find_a_detectable_difference_with_the_sign_flip_test_too():
    # The t test is the most powerful one for normal differences; the exact test loses little of its .8.
    samples = np.random.default_rng(7).normal(detectable_difference(10), 1, (1500, 10))
    found = np.mean([sign_flip_test(sample) < 0.05 for sample in samples])
    assert 0.74 < found < 0.83


def test_the_best_of_equal_arms_is_rarely_above_all_others():
    # The rule for bold print, on the intervals of paired differences: the highest mean against every other.
    rng, hits = np.random.default_rng(8), []
    for _ in range(600):
        score_AS = rng.standard_normal((4, 10))
        first, *others = score_AS[np.argsort(-score_AS.mean(axis=1))]
        hits.append(all(t_interval(first - other).low > 0 for other in others))
    assert np.sum(hits) <= bounds(600, 0.05)[1]
