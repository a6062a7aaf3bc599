"""The size of a cohort, with a clock that is told what time it is."""

import pytest

from mmdistill.training.cohort import MEASURED_S, SIZES, choose_lanes


class Machine:
    """A step of K lanes takes ``seconds[K]``; the first is slow."""

    def __init__(self, seconds):
        self.seconds, self.now, self.tried = seconds, 0.0, []

    def step_of(self, lanes):
        self.tried.append(lanes)
        calls = iter(range(10**6))

        def step():
            self.now += self.seconds[lanes] * (10 if next(calls) == 0 else 1)

        return step

    def choose(self, most=1000):
        return choose_lanes(self.step_of, most, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("per_lane", "expected"),
    [
        ((10.0, 3.0, 1.2, 1.0), 64),
        ((10.0, 3.0, 1.04, 1.0), 16),
        ((10.0, 3.0, 1.06, 1.0), 64),
        ((1.0, 1.0, 1.0, 1.0), 1),
        ((1.2, 1.0, 1.3, 1.4), 4),
    ],
)
def test_the_smallest_that_is_near_the_best_is_chosen(per_lane, expected):
    machine = Machine({size: size * cost / 100 for size, cost in zip(SIZES, per_lane, strict=True)})
    assert machine.choose() == expected


def test_what_does_not_fit_into_memory_is_not_tried():
    machine = Machine(dict.fromkeys(SIZES, 1.0))
    assert machine.choose(most=63) == 16
    assert machine.tried == [1, 4, 16]
    assert Machine({1: 1.0}).choose(most=0) == 1


def test_measuring_is_bounded():
    machine = Machine(dict.fromkeys(SIZES, 1e-3))
    machine.choose()
    assert machine.now <= len(SIZES) * (MEASURED_S + 12e-3)
    slow = Machine(dict.fromkeys(SIZES, 1.0))
    slow.choose()
    assert slow.now == len(SIZES) * 11
