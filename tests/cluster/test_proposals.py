import json
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

GRID = {
    "anchors": Range(low=5, high=60, integer=True, steps=3),
    "pool": Choice(choice=(["joint"], ["each", "joint"], "other")),
    "rate": Range(low=3e-4, high=3e-2, log=True, steps=2),
    "smoothing": Range(low=0.0, high=0.2, steps=2),
}
SAMPLERS = ("sobol", "halton", "random", "grid", "tpe", "cmaes")


def request(**changes):
    asked = {
        "space": SPACE,
        "columns": (tuple(sorted(SPACE)),),
        "past": (),
        "first": 0,
        "count": 4,
        "startup": 8,
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


@settings(max_examples=6, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**62), first=st.sampled_from([8, 11, 24]))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_rebuilt_from_the_records_and_stays_inside(sampler, data, seed, first):
    space = SPACE if sampler != "grid" else GRID
    known = []
    outcomes = st.sampled_from(["complete", "failed", "pruned"])
    for trial in propose(request(sampler="sobol", space=space, count=first, shared_seed=seed)):
        value, outcome = score(trial), data.draw(outcomes)
        stopped = (2, value) if outcome == "pruned" else None
        known.append(Past(len(known), trial, value if outcome == "complete" else None, stopped))
    asked = request(sampler=sampler, space=space, past=tuple(known), first=first, seed=seed, shared_seed=seed)
    found = propose(asked)
    assert found == propose(asked)
    assert len(found) == 4
    assert all(fits(parameters) for parameters in found)
    json.dumps(found)


@pytest.mark.parametrize("sampler", ["sobol", "halton", "random", "grid"])
def test_what_learns_nothing_is_the_same_in_generations_and_at_once(sampler):
    space = SPACE if sampler != "grid" else GRID
    whole = propose(request(sampler=sampler, space=space, count=9))
    parts = [propose(request(sampler=sampler, space=space, first=n, count=3, seed=n)) for n in (0, 3, 6)]
    assert whole == [trial for part in parts for trial in part]


@pytest.mark.parametrize("sampler", ["sobol", "halton", "random"])
def test_a_revision_changes_no_point_of_the_arms_that_were_there(sampler):
    smaller = {name: SPACE[name] for name in ("rate", "smoothing")}
    before = propose(request(sampler=sampler, count=8, space=smaller, columns=(("rate", "smoothing"),)))
    columns = (("rate", "smoothing"), ("anchors", "pool"))
    added = propose(request(sampler=sampler, count=8, columns=columns))
    assert before == [{name: trial[name] for name in smaller} for trial in added]
    assert len({trial["anchors"] for trial in added}) > 4


def test_coordinates_of_a_later_revision_are_no_copies():
    space = {name: Range(low=0.0, high=1.0) for name in "ab"}
    points = propose(request(sampler="sobol", space=space, columns=(("a",), ("b",)), count=8))
    halves = [(point["a"] < 0.5) == (point["b"] < 0.5) for point in points]
    assert sum(halves) == 4


def test_a_grid_holds_every_combination_once_and_begins_again():
    found = propose(request(sampler="grid", space=GRID, count=3 * 3 * 2 * 2 + 2))
    texts = [json.dumps(trial) for trial in found]
    assert len(set(texts[:36])) == 36
    assert texts[36:] == texts[:2]
    assert sorted({trial["rate"] for trial in found}) == [0.0003, 0.03]
    assert {trial["anchors"] for trial in found} == {5, 32, 60}


def test_cma_es_moves_to_where_results_are_good():
    def steep(trial):
        return abs(math.log(trial["rate"] / 1e-3)) + 10 * trial["smoothing"]

    known = list(past(8, steep))
    for first in range(8, 48, 4):
        found = propose(request(sampler="cmaes", past=tuple(known), first=first, seed=first))
        known += [Past(first + n, trial, steep(trial)) for n, trial in enumerate(found)]
    assert sum(t.value for t in known[-8:]) < 0.5 * sum(t.value for t in known[:8])


def test_cma_es_learns_from_the_results_and_not_from_its_own_seed():
    space = {name: SPACE[name] for name in ("rate", "smoothing")}
    good = [Past(n, {"rate": 0.02, "smoothing": 0.01 + 0.001 * n}, 0.1 * n) for n in range(8)]
    for seed in range(3):
        found = propose(request(sampler="cmaes", space=space, past=good, first=8, count=16, seed=seed))
        assert sum(trial["rate"] > 3e-3 for trial in found) > 8


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_the_loser_of_a_race_counts_by_its_best_value(sampler):
    complete = past(24)
    space_of = {"past": complete, "first": 24, "count": 8}
    alike = propose(request(sampler=sampler, **space_of))
    best = sorted(complete, key=lambda trial: trial.value)[:6]
    lost = tuple(t._replace(value=None, stopped=(3, t.value)) if t in best else t for t in complete)
    failed = tuple(t._replace(value=None) if t in best else t for t in complete)
    raced, gone = (propose(request(sampler=sampler, **space_of | {"past": p})) for p in (lost, failed))
    assert (raced == alike) is (sampler == "cmaes")
    assert gone not in (raced, alike)


def test_one_interval_or_none_is_enough_for_cma_es():
    for names in (["rate"], ["pool"]):
        space = {name: SPACE[name] for name in names}
        known = [Past(n, {name: found.at(n / 12)}, n) for n in range(12) for name, found in space.items()]
        found = propose(request(sampler="cmaes", space=space, past=known, first=12))
        assert [list(trial) for trial in found] == [names] * 4


def test_another_seed_gives_other_proposals():
    for sampler in ("tpe", "cmaes"):
        assert propose(request(sampler=sampler, past=past(8))) != propose(
            request(sampler=sampler, past=past(8), seed=12)
        )
    for sampler in ("sobol", "halton", "random"):
        assert propose(request(sampler=sampler)) != propose(request(sampler=sampler, shared_seed=23))


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
    first = propose(request(sampler="sobol", space=space, columns=(("x",),), count=3, shared_seed=seed))
    then = propose(
        request(
            space=space, columns=(("x",),), seed=seed, past=[Past(n, p, p["x"]) for n, p in enumerate(first)]
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
