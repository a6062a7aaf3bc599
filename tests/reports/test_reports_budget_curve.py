"""The best of n trials: against drawing them, in closed form and where trials fail."""

import numpy as np
import pytest

from mmdistill.reports.budget_curve import budget_curves
from mmdistill.reports.readings import readings_of

LOSSES = [0.9, 0.5, 0.7, 0.6]


def curve_of(study, arm="student_only"):
    return {curve.arm: curve for curve in budget_curves(readings_of(study.tables()))}[arm]


@pytest.fixture
def searched(new_study):
    def build(losses=LOSSES, **other):
        study = new_study(["student_only"])
        study.add_search("student_only", losses, **other)
        return study

    return build


def test_the_expected_best_is_that_of_random_draws(searched):
    points = curve_of(searched()).points
    draws = np.random.default_rng(0).choice(LOSSES, (40000, 4))
    best = np.minimum.accumulate(draws, axis=1).mean(axis=0)
    assert [point.n for point in points] == [1, 2, 3, 4]
    assert [point.loss.mean for point in points] == pytest.approx(best, abs=0.003)
    assert points[0].loss.mean == pytest.approx(np.mean(LOSSES))
    # The search ranks by the loss; the score is that of the trial it would take (1 - loss / 2 here).
    assert [point.score.mean for point in points] == pytest.approx([1 - loss / 2 for loss in best], abs=0.003)


def test_the_band_holds_nine_tenths_of_the_draws(searched):
    losses = list(np.random.default_rng(1).random(30))
    for point in curve_of(searched(losses)).points:
        draws = np.random.default_rng(2).choice(losses, (4000, point.n)).min(axis=1)
        inside = np.mean((draws >= point.loss.low) & (draws <= point.loss.high))
        assert inside >= 0.88
        assert point.loss.low <= point.loss.mean <= point.loss.high


def test_the_observed_curve_is_the_running_best(searched):
    points = curve_of(searched()).points
    assert [point.loss.observed for point in points] == [0.9, 0.5, 0.5, 0.5]
    assert [point.score.observed for point in points] == [0.55, 0.75, 0.75, 0.75]


def test_a_failed_trial_costs_budget_and_finds_nothing(searched):
    study = searched([0.5, 0.8])
    study.add_search("student_only", [0.1], status="diverged")
    study.trials[-1] = type(study.trials[-1])(**vars(study.trials[-1]) | {"trial_id": "x", "number": 2})
    curve = curve_of(study)
    assert curve.incomplete == 1
    assert curve.points[0].loss.mean == pytest.approx((0.5 + 0.8 + 0.8) / 3)


def test_searches_of_several_folds_are_averaged(searched):
    study = searched([0.5, 0.9])
    study.add_search("student_only", [0.3, 0.7], fold=1)
    first, second = curve_of(study).points
    assert first.loss.mean == pytest.approx(0.6)
    assert second.loss.observed == pytest.approx(0.4)
    assert second.loss.mean == pytest.approx((0.75 * 0.5 + 0.25 * 0.9 + 0.75 * 0.3 + 0.25 * 0.7) / 2)


def test_the_budget_is_in_cpu_seconds_too(searched):
    assert curve_of(searched()).cpu_s == 4.0


def test_a_long_search_is_thinned_and_an_empty_one_left_out(searched):
    points = curve_of(searched(list(np.random.default_rng(3).random(1000)))).points
    assert len(points) <= 200
    assert (points[0].n, points[-1].n) == (1, 1000)
    assert budget_curves(readings_of(searched([0.5], status="failed").tables())) == ()
