"""Numbers are checked against SciPy, against definitions, and by simulation with a known truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmdistill.few_pairs import smallest_p, too_few, too_few_alone
from mmdistill.statistics import (
    Interval,
    concordance,
    corrected_resampled_t,
    crossed_contrasts_bootstrap,
    crossed_score_bootstrap,
    detectable_difference,
    false_discovery,
    holm,
    ratio,
    sign_flip_test,
    t_interval,
    t_test,
    verdict,
)

RNG = np.random.default_rng
SAMPLES = st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=2, max_size=12)


def interval(low, high, n=10):
    return Interval((low + high) / 2, low, high, n)


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("level", [0.90, 0.95])
def test_t_interval_agrees_with_scipy(n, level):
    values = RNG(n).normal(2, 3, n)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(level)
    ours = t_interval(values, level=level)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((values.mean(), low, high))
    assert ours.n == n


def test_one_value_has_a_mean_and_no_interval():
    one = t_interval([0.7])
    assert one.mean == 0.7
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(t_interval([]).mean)


def test_t_interval_covers_as_it_says():
    rng = RNG(0)
    covered = [i.low <= 0 <= i.high for i in (t_interval(rng.standard_normal(5)) for _ in range(1000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_t_test_agrees_with_scipy():
    values = RNG(1).normal(0.3, 1, 12)
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_equal_differences_are_certain():
    assert t_test([0.1, 0.1, 0.1]) == 0.0
    assert t_test([0.0, 0.0]) == 1.0


def test_corrected_t_widens_the_variance_by_the_test_share():
    values = RNG(2).normal(1, 1, 10)
    corrected, p = corrected_resampled_t(values, 1 / 9)
    error = values.std(ddof=1) * math.sqrt(1 / 10 + 1 / 9)
    assert corrected.high - corrected.mean == pytest.approx(stats.t.ppf(0.975, 9) * error)
    assert p == pytest.approx(2 * stats.t.sf(values.mean() / error, 9))
    assert corrected_resampled_t(values, 0.0)[0] == t_interval(values)


@pytest.mark.parametrize("n", [3, 6, 10])
def test_sign_flip_test_agrees_with_scipy(n):
    values = RNG(n).normal(0.4, 1, n)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(values) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("n", [2, 5, 10, 16])
def test_equal_differences_reach_the_smallest_p(n):
    assert sign_flip_test([0.1] * n) == smallest_p(n) == 2.0 ** (1 - n)


def test_five_pairs_cannot_reach_five_percent():
    assert smallest_p(5) == 0.0625


def test_many_pairs_fall_back_to_t():
    values = RNG(3).normal(0.2, 1, 40)
    assert sign_flip_test(values) == t_test(values)


@given(SAMPLES)
def test_sign_flip_p_does_not_depend_on_the_sign(values):
    p = sign_flip_test(values)
    assert 0 < p <= 1
    assert p == sign_flip_test([-value for value in values])


def test_too_few_pairs_are_refused_with_the_number_that_could_do():
    assert too_few(10, 3) is None
    assert too_few(6, 1) is None
    assert too_few(5, 2) == (
        "n = 5 is too small: the exact sign-flip test of 2 planned contrast(s) cannot go below "
        "p = 0.12 after Holm; n = 7 could reach 0.05"
    )


def test_one_unplanned_effect_that_cannot_pass_is_told_with_what_could():
    assert too_few_alone(6, 1) is None
    assert too_few_alone(10, 25) is None
    assert too_few_alone(17, 1000) is None
    assert too_few_alone(6, 12) == (
        "With n = 6 no p can be below 0.031: one true effect alone among the 12 unplanned "
        "comparison(s) cannot pass Benjamini-Hochberg, unless 8 are that clear together; plan the "
        "contrasts that matter, or take n = 9"
    )
    assert "nor could all together" in too_few_alone(4, 3)
    # What it says is what the adjustment does, on either side of its bounds.
    for n, clear, passes in [(6, 1, False), (6, 7, False), (6, 8, True), (8, 1, False), (9, 1, True)]:
        adjusted = false_discovery([smallest_p(n)] * clear + [1.0] * (12 - clear))
        assert (min(adjusted) < 0.05) is passes


# Cohen (1988): d = .5 is found with n = 34, d = .996 with n = 10; two-sided .05, power .8.
@pytest.mark.parametrize(("n", "difference"), [(34, 0.495), (10, 0.996)])
def test_detectable_difference_is_that_of_the_textbook(n, difference):
    assert detectable_difference(n) == pytest.approx(difference, abs=0.002)


def test_a_detectable_difference_is_found_as_often_as_promised():
    values = RNG(4).normal(detectable_difference(8, level=0.05 / 3), 1, (4000, 8))
    p = stats.ttest_1samp(values, 0, axis=1).pvalue
    assert (p < 0.05 / 3).mean() == pytest.approx(0.8, abs=0.02)


def test_overlapping_training_sets_need_larger_differences():
    assert detectable_difference(5, test_share=0.25) == pytest.approx(
        detectable_difference(5) * math.sqrt((1 / 5 + 0.25) * 5)
    )
    assert detectable_difference(1) == math.inf


def test_holm_follows_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([math.nan, 0.01]) == pytest.approx([1.0, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni(pvalues):
    adjusted = holm(pvalues)
    for p, q in zip(pvalues, adjusted, strict=True):
        assert p - 1e-12 <= q <= min(1.0, p * len(pvalues)) + 1e-12
    assert np.all(np.diff(np.asarray(adjusted)[np.argsort(pvalues, kind="stable")]) >= 0)


def test_false_discovery_agrees_with_scipy_and_takes_nothing():
    assert false_discovery([0.01, 0.04, 0.03]) == pytest.approx(
        stats.false_discovery_control([0.01, 0.04, 0.03])
    )
    assert false_discovery([]) == []


def crossed_bootstrap(difference_SU, **options):
    """Return the bootstrap of the mean of a table, as that of a score: one run per seed, one row per unit."""
    ones_SU = np.ones_like(difference_SU)
    arm_RUQ, against_RUQ = (np.stack([ones_SU, part], -1) for part in (difference_SU, 0 * ones_SU))
    seed_R = np.arange(len(difference_SU))
    return crossed_score_bootstrap(arm_RUQ, against_RUQ, seed_R, ratio, **options)


def effects(rng, seeds, units, seed_sd, unit_sd, noise_sd, mean=0.0):
    seed_S1 = seed_sd * rng.standard_normal((seeds, 1))
    unit_1U = unit_sd * rng.standard_normal((1, units))
    return mean + seed_S1 + unit_1U + noise_sd * rng.standard_normal((seeds, units))


@pytest.mark.parametrize(
    ("seeds", "spread"),
    [(10, (1, 0, 0.01)), (10, (0, 1, 0.01)), (10, (0.2, 1, 1)), (5, (0.2, 1, 1)), (3, (0.3, 1, 1))],
)
def test_crossed_interval_covers_seed_and_unit_effects(seeds, spread):
    rng = RNG(4)
    found = [
        crossed_bootstrap(effects(rng, seeds, 60, *spread), draws=400, seed=i % 20).interval()
        for i in range(300)
    ]
    assert 0.91 <= np.mean([i.low <= 0 <= i.high for i in found]) <= 0.99


def test_crossed_interval_is_not_needlessly_wide():
    rng = RNG(5)
    tables = [effects(rng, 10, 100, 0.2, 1, 1) for _ in range(40)]
    width = np.mean([np.diff(crossed_bootstrap(t).interval()[1:3]) for t in tables])
    truth = 2 * 1.96 * math.sqrt(0.2**2 / 10 + 1 / 100 + 1 / 1000)
    assert truth < width < 1.35 * truth


def test_crossed_estimate_is_the_mean_and_repeats_itself():
    table_SU = RNG(6).standard_normal((4, 30))
    first, again = crossed_bootstrap(table_SU, seed=3), crossed_bootstrap(table_SU, seed=3)
    assert first.estimate == pytest.approx(table_SU.mean())
    assert first.interval() == again.interval()
    assert first.interval() != crossed_bootstrap(table_SU, seed=4).interval()


@pytest.mark.parametrize("shape", [(1, 20), (5, 1)])
def test_one_seed_or_one_unit_has_no_crossed_interval(shape):
    assert math.isnan(crossed_bootstrap(np.ones(shape)).interval().low)


def test_no_run_has_no_estimate():
    nothing = np.zeros((0, 3, 2))
    empty = crossed_score_bootstrap(nothing, nothing, np.zeros(0, dtype=np.int64), ratio)
    assert math.isnan(empty.estimate)


def test_swapping_the_arms_flips_the_crossed_interval():
    rng = RNG(7)
    arm, against = (np.stack([np.ones((3, 40)), rng.random((3, 40))], -1) for _ in range(2))
    seeds = np.arange(3)
    there = crossed_score_bootstrap(arm, against, seeds, ratio).interval()
    back = crossed_score_bootstrap(against, arm, seeds, ratio).interval()
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_folds_of_one_unit_are_resampled_as_units():
    # Two seeds of twenty subjects, one subject per fold: the same data as two runs over twenty units.
    rng = RNG(8)
    score_SU = rng.random((2, 20))
    flat = crossed_bootstrap(score_SU, draws=4000, seed=1)
    moments = np.zeros((40, 20, 2))
    for s in range(2):
        for u in range(20):
            moments[s * 20 + u, u] = (1, score_SU[s, u])
    zero = moments * [1, 0]
    folded = crossed_score_bootstrap(moments, zero, np.repeat([0, 1], 20), ratio, draws=4000, seed=1)
    assert folded.estimate == pytest.approx(flat.estimate)
    assert folded.interval()[1:3] == pytest.approx(flat.interval()[1:3])


def ccc(x, y):
    return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def products(x_SU, y_SU):
    return np.stack([np.ones_like(x_SU), x_SU, y_SU, x_SU**2, y_SU**2, x_SU * y_SU], axis=-1)


def test_concordance_of_moments_follows_lin():
    rng = RNG(9)
    y_N = rng.standard_normal(50)
    x_N = 0.7 * y_N + 0.2 + 0.3 * rng.standard_normal(50)
    moments = products(x_N, y_N).sum(axis=0)
    assert concordance(moments) == pytest.approx(ccc(x_N, y_N))
    two = np.concatenate([moments, products(y_N, y_N).sum(axis=0)[1:]])
    assert concordance(two) == pytest.approx((ccc(x_N, y_N) + 1) / 2)


def test_a_constant_prediction_has_no_concordance():
    y_N = RNG(10).standard_normal(20)
    flat = products(np.full(20, y_N.mean()), y_N).sum(axis=0)
    assert concordance(flat) == pytest.approx(0, abs=1e-12)
    assert concordance(products(np.zeros(20), np.zeros(20)).sum(axis=0)) == 0


def test_crossed_interval_of_concordance_agrees_with_plain_resampling():
    rng = RNG(11)
    y_SU = np.repeat(rng.standard_normal((1, 80)), 6, axis=0)
    a_SU, b_SU = (y_SU + spread * rng.standard_normal((6, 80)) for spread in (0.5, 0.9))
    drawn = crossed_score_bootstrap(products(a_SU, y_SU), products(b_SU, y_SU), np.arange(6), concordance)
    by_hand = []
    for _ in range(1000):
        s, u = rng.integers(6, size=6), rng.integers(80, size=80)
        pairs = [(a_SU[i, u], b_SU[i, u], y_SU[i, u]) for i in s]
        by_hand.append(np.mean([ccc(a, y) - ccc(b, y) for a, b, y in pairs]))
    assert drawn.estimate == pytest.approx(
        np.mean([ccc(a, y) - ccc(b, y) for a, b, y in zip(a_SU, b_SU, y_SU, strict=True)])
    )
    # The spread is corrected upwards by 6 / 5 in the part that comes from seeds.
    assert 0.95 < drawn.draws_K.std() / np.std(by_hand) < 1.15


@pytest.mark.parametrize(
    ("wide", "narrow", "p", "said"),
    [
        ((0.02, 0.05), (0.025, 0.045), 0.01, "helps"),
        ((-0.05, -0.02), (-0.045, -0.025), 0.01, "harms"),
        ((0.02, 0.05), (0.025, 0.045), 0.06, "cannot tell"),
        ((-0.01, 0.05), (-0.005, 0.04), 0.01, "cannot tell"),
        ((-0.006, 0.004), (-0.004, 0.003), 0.5, "equivalent"),
        ((0.001, 0.004), (0.002, 0.003), 0.001, "equivalent"),
        ((math.nan, math.nan), (math.nan, math.nan), 0.001, "cannot tell"),
        ((0.02, 0.05), (0.025, 0.045), math.nan, "cannot tell"),
    ],
)
def test_verdict_follows_its_rule(wide, narrow, p, said):
    assert verdict([interval(*wide)] * 2, [interval(*narrow)] * 2, margin=0.005, p=p) == said


def test_both_intervals_must_agree():
    clear, doubtful = interval(0.01, 0.03), interval(-0.01, 0.05)
    assert verdict([clear, doubtful], [clear, doubtful], margin=0.005) == "cannot tell"
    assert verdict([clear, clear], [clear, clear], margin=0.005) == "helps"


def simulated_verdict(rng, mean, number):
    table_SU = effects(rng, 10, 60, 0.01, 0.05, 0.2, mean)
    drawn, per_seed = crossed_bootstrap(table_SU, draws=400, seed=number % 20), table_SU.mean(axis=1)
    wide = [t_interval(per_seed), drawn.interval(0.95)]
    narrow = [t_interval(per_seed, level=0.9), drawn.interval(0.9)]
    return verdict(wide, narrow, margin=0.005, p=sign_flip_test(per_seed))


def test_nothing_is_rarely_called_something():
    rng = RNG(12)
    said = [simulated_verdict(rng, 0.0, number) for number in range(300)]
    assert np.mean([word in ("helps", "harms") for word in said]) <= 0.06


def test_a_clear_effect_is_usually_found_and_never_reversed():
    rng = RNG(13)
    said = [simulated_verdict(rng, 0.06, number) for number in range(100)]
    assert np.mean([word == "helps" for word in said]) > 0.8
    assert "harms" not in said


def simulated_family(rng, means, number, margin=0.03):
    """Return the verdicts of some planned contrasts of ten pairs, Holm-adjusted together."""
    tables = [effects(rng, 10, 60, 0.01, 0.05, 0.2, mean) for mean in means]
    adjusted = holm([sign_flip_test(table_SU.mean(axis=1)) for table_SU in tables])
    found = []
    for table_SU, p in zip(tables, adjusted, strict=True):
        drawn, per_seed = crossed_bootstrap(table_SU, draws=400, seed=number % 20), table_SU.mean(axis=1)
        wide = [t_interval(per_seed), drawn.interval(0.95)]
        narrow = [t_interval(per_seed, level=0.9), drawn.interval(0.9)]
        found.append(verdict(wide, narrow, margin=margin, p=p))
    return found


def test_three_null_contrasts_rarely_yield_one_effect():
    rng = RNG(14)
    said = [simulated_family(rng, [0.0] * 3, number) for number in range(150)]
    assert np.mean([bool({"helps", "harms"} & set(words)) for words in said]) <= 0.06


def test_a_difference_of_the_margin_is_rarely_called_equivalent():
    rng = RNG(15)
    said = [simulated_family(rng, [0.03], number)[0] for number in range(300)]
    assert np.mean([word == "equivalent" for word in said]) <= 0.06


def test_no_difference_is_usually_called_equivalent_within_a_wide_margin():
    rng = RNG(16)
    said = [simulated_family(rng, [0.0], number, margin=0.05)[0] for number in range(100)]
    assert np.mean([word == "equivalent" for word in said]) > 0.9


def test_a_contrast_of_several_arms_shares_its_draws_with_their_differences():
    """Every draw of a sum of differences is that sum of the draws, before the spread is corrected."""
    generator, seeds = RNG(4), np.arange(6)
    rows, hits = np.ones((4, 6, 50)), (generator.random((4, 6, 50)) < 0.7).astype(float)
    moments = np.stack([rows, hits], axis=-1)
    weights = [[1, -1, 0, 0], [0, 0, 1, -1], [1, -1, 1, -1], [2, -2, 0, 0]]
    first, second, both, twice = crossed_contrasts_bootstrap(moments, weights, seeds, ratio, seed=3)
    pair = crossed_score_bootstrap(moments[0], moments[1], seeds, ratio, seed=3)
    assert np.array_equal(first.draws_K, pair.draws_K)
    assert twice.interval() == pytest.approx([2 * end for end in first.interval()[:3]] + [6])
    assert both.estimate == pytest.approx(first.estimate + second.estimate)
    centred = [(one.draws_K - one.estimate) for one in (first, second, both)]
    slopes = np.linalg.lstsq(np.stack(centred[:2], axis=1), centred[2], rcond=None)
    # Each part has a correction of its own, so the slopes are near 1, and nothing is left over.
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert float(slopes[1][0]) == pytest.approx(0, abs=1e-18)
