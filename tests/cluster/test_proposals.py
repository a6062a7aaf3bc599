import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.cluster.proposals import propose
from mmdistill.settings import Choice, Range
from mmdistill.studies.protocol import Past, ProposalRequest

SPACE = {
    "anchors": Range(low=5, high=60, log=True, integer=True),
    "pool": Choice(choice=(["joint"], ["each", "joint"], "other")),
    "rate": Range(low=3e-4, high=3e-2, log=True),
    "smoothing": Range(low=0.0, high=0.2),
}


def request(**changes):
    asked = {
        "space": SPACE,
        "columns": tuple(sorted(SPACE)),
        "past": (),
        "first": 0,
        "count": 4,
        "seed": 11,
        "shared_seed": 22,
        "sampler": "tpe",
    } | changes
    return ProposalRequest(**asked)


def score(parameters):
    return abs(math.log(parameters["rate"] / 3e-3)) + (parameters["pool"] != ["joint"])


def past(count, value=score):
    return tuple(Past(n, p, value(p)) for n, p in enumerate(propose(request(sampler="sobol", count=count))))


def fits(parameters):
    assert list(parameters) == list(SPACE)
    assert isinstance(parameters["anchors"], int)
    assert parameters["pool"] in [["joint"], ["each", "joint"], "other"]
    return all(SPACE[n].low <= parameters[n] <= SPACE[n].high for n in ("anchors", "rate", "smoothing"))


@pytest.mark.parametrize("sampler", ["sobol", "tpe", "random"])
def test_the_same_request_gives_the_same_proposals(sampler):
    asked = request(sampler=sampler, past=past(8))
    assert propose(asked) == propose(asked)
    assert all(fits(parameters) for parameters in propose(asked))


def test_another_seed_gives_other_proposals():
    for sampler in ("tpe", "random"):
        assert propose(request(sampler=sampler, past=past(8))) != propose(
            request(sampler=sampler, past=past(8), seed=12)
        )
    assert propose(request(sampler="sobol")) != propose(request(sampler="sobol", shared_seed=23))


def test_a_start_may_be_asked_for_in_parts():
    whole = propose(request(sampler="sobol", count=8))
    assert whole == propose(request(sampler="sobol", count=3)) + propose(
        request(sampler="sobol", first=3, count=5)
    )


def test_arms_try_the_same_values_where_their_spaces_overlap():
    smaller = {name: SPACE[name] for name in ("rate", "smoothing")}
    ours = propose(request(sampler="sobol", count=8))
    theirs = propose(request(sampler="sobol", count=8, space=smaller))
    assert theirs == [{name: parameters[name] for name in smaller} for parameters in ours]


def test_a_start_covers_every_interval_evenly():
    points = propose(request(sampler="sobol", count=8))
    low, high = math.log(3e-4), math.log(3e-2)
    cells = sorted(int(8 * (math.log(point["rate"]) - low) / (high - low)) for point in points)
    assert cells == list(range(8))
    assert {tuple(point["pool"]) for point in points} >= {("joint",), ("each", "joint")}


def test_failures_alone_are_no_obstacle():
    failed = [trial._replace(value=None) for trial in past(5)]
    assert all(fits(parameters) for parameters in propose(request(past=failed)))


def test_failures_are_known_but_do_not_count_as_results():
    some = past(6)
    with_failures = (*some, Past(6, some[0].parameters, None))
    assert all(fits(parameters) for parameters in propose(request(past=with_failures)))


def test_values_at_the_ends_of_an_interval_are_accepted_as_past():
    low = {n: d.choice[0] if isinstance(d, Choice) else d.low for n, d in SPACE.items()} | {"anchors": 5}
    high = {n: d.choice[-1] if isinstance(d, Choice) else d.high for n, d in SPACE.items()} | {"anchors": 60}
    assert all(fits(p) for p in propose(request(past=(Past(0, low, 1.0), Past(1, high, 2.0)))))


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(1e-6, 1e3, allow_subnormal=False),
    factor=st.floats(1.0000001, 1e3),
    log=st.booleans(),
    seed=st.integers(0, 2**62),
)
def test_proposals_stay_inside_any_interval_and_can_be_given_back(low, factor, log, seed):
    high = low * factor
    if not low < high:
        return
    space = {"x": Range(low=low, high=high, log=log)}
    first = propose(request(sampler="sobol", space=space, columns=("x",), count=3, shared_seed=seed))
    then = propose(
        request(
            space=space, columns=("x",), seed=seed, past=[Past(n, p, p["x"]) for n, p in enumerate(first)]
        )
    )
    assert all(low <= parameters["x"] <= high for parameters in first + then)


def test_tpe_moves_to_where_results_are_good():
    found = propose(request(past=past(32), first=32, count=8))
    assert sum(score(p) for p in found) / 8 < sum(trial.value for trial in past(32)) / 32


def test_nothing_is_written_to_the_terminal(capfd):
    propose(request(past=past(8)))
    assert capfd.readouterr() == ("", "")


def test_an_interval_contains_its_values_to_the_last_bit():
    # exp(log(5)) is below 5, and a count below `low` would be refused as a past value.
    whole, real = Range(low=5, high=60, log=True, integer=True), Range(low=0.03, high=3, log=True)
    assert [whole.at(0.0), whole.at(1 - 2**-53)] == [5, 60]
    assert real.at(0.0) == 0.03
