"""Who goes on in a race."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.training.race import RaceSettings, survivors

HALVING = RaceSettings(kind="halving", first=2, factor=3)
MEDIAN = RaceSettings(kind="median", first=2)
NAN, INF = math.nan, math.inf


def held(values, epochs):
    """Return curves that stay at one value."""
    return [[value] * epochs for value in values]


def test_halving_keeps_the_best_third_rounded_up_at_each_rung():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0]
    assert survivors(HALVING, held(values, 1)) == list(range(7))
    assert survivors(HALVING, held(values, 2)) == [1, 3, 4]
    assert survivors(HALVING, held(values, 3)) == list(range(7))
    assert survivors(HALVING, held(values, 6)) == [1, 3, 4]
    assert survivors(HALVING, held(values, 18)) == [1, 3, 4]
    assert survivors(HALVING, held(values, 12)) == list(range(7))


def test_halving_goes_on_among_those_that_are_left():
    stopped = held([5.0, 4.0, 9.0, 7.0], 2)
    assert survivors(HALVING, [stopped[0], [1.0] * 6, stopped[1], [0.5] * 6, [2.0] * 6, *stopped[2:]]) == [3]


def test_lanes_are_compared_by_their_best_value_so_far():
    assert survivors(HALVING, [[1.0, 9.0], [2.0, 2.0], [3.0, 3.0]]) == [0]


def test_ties_go_to_the_first_lane():
    assert survivors(HALVING, held([2.0, 2.0, 2.0], 2)) == [0]
    assert survivors(HALVING, held([3.0, 2.0, 2.0, 2.0], 2)) == [1, 2]


def test_median_stops_who_never_was_as_good_as_the_median_of_the_averages():
    curves = [[1.0, 0.5], [4.0, 2.0], [3.0, 2.8], [6.0, 2.5]]
    # Averages .75, 3, 2.9, 4.25: the median is 2.95.
    assert survivors(MEDIAN, [curve[:1] for curve in curves]) == [0, 1, 2, 3]
    assert survivors(MEDIAN, curves) == [0, 1, 2, 3]
    assert survivors(MEDIAN, [*curves, [9.0, 3.1]]) == [0, 1, 2, 3]
    # Averages .75, 3, 2.95, 1: the median is 1.975.
    assert survivors(MEDIAN, [*curves[:2], [3.0, 2.9], [1.0, 1.0]]) == [0, 3]


def test_a_stopped_lane_counts_with_its_average_until_then():
    # Averages .75, 2, 3, 10 (stopped): the median is 2.5; without the stopped lane it would be 2.
    curves = [[1.0, 0.75, 0.5], [2.0, 2.0, 2.0], [3.5, 3.0, 2.5], [10.0, 10.0]]
    assert survivors(MEDIAN, curves) == [0, 1, 2]


@pytest.mark.parametrize("race", [HALVING, MEDIAN])
def test_what_is_not_finite_never_goes_on_beside_what_is(race):
    assert survivors(race, [[0.1, NAN], [5.0, 5.0], [0.1, INF], [0.2, NAN]]) == [1]
    assert survivors(race, [[NAN, NAN], [INF, INF], [1.0, NAN]]) == [0]


def test_an_early_value_that_was_not_finite_is_forgiven_by_halving():
    assert survivors(HALVING, [[3.0, 3.0], [NAN, 1.0], [2.0, 2.0]]) == [1]


VALUES = st.floats(-1e6, 1e6) | st.sampled_from([NAN, INF, 0.5])
RACES = st.builds(
    RaceSettings,
    kind=st.sampled_from(["halving", "median"]),
    first=st.integers(1, 4),
    factor=st.integers(2, 4),
)


@settings(max_examples=150, deadline=None)
@given(
    race=RACES,
    table=st.integers(1, 8).flatmap(
        lambda lanes: st.lists(st.lists(VALUES, min_size=lanes, max_size=lanes), min_size=1, max_size=12)
    ),
)
def test_a_whole_race_keeps_its_promises(race, table):
    lanes = len(table[0])
    curves, going = [[] for _ in range(lanes)], list(range(lanes))
    for values in table:
        for lane in going:
            curves[lane].append(values[lane])
        found = survivors(race, curves)
        assert found
        assert found == sorted(set(found))
        assert set(found) <= set(going)
        if len(found) < len(going):
            finite = [lane for lane in going if math.isfinite(values[lane])]
            assert not finite or set(found) <= set(finite)
            best = {lane: min(v for v in curves[lane] if math.isfinite(v)) for lane in finite}
            dropped = set(finite) - set(found)
            assert all(best[lane] >= max(best[kept] for kept in found) for lane in dropped)
        going = found
