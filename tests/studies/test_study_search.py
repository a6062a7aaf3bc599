"""What a search contradicts, the values of a grid, and what is recorded of where winners were searched."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdistill.errors import InputError
from mmdistill.records.rows import PHASES
from mmdistill.settings import Choice, Range
from mmdistill.studies.file import SearchSettings
from mmdistill.studies.proposing import sampler_of
from mmdistill.studies.provenance import study_row
from mmdistill.studies.search import generations_of

RATE = "search.space.optimiser.learning_rate="
REST = [
    "search.space.optimiser.weight_decay=false",
    "search.space.optimiser.label_smoothing=false",
    "search.space.terms.softened_logits.weight=false",
    "search.space.terms.softened_logits.temperature=false",
]


@given(trials=st.integers(1, 60), startup=st.integers(1, 20), generation=st.integers(1, 20))
def test_generations_hold_every_trial_once(trials, startup, generation):
    found = generations_of(SearchSettings(trials=trials, startup=startup, generation=generation))
    assert [number for numbers in found for number in numbers] == list(range(trials))
    assert len(found[0]) == min(startup, trials)
    assert all(len(numbers) <= generation for numbers in found[1:])


@pytest.mark.parametrize(
    ("sampler", "proposers"),
    [
        ("tpe", ["sobol", "tpe"]),
        ("cmaes", ["sobol", "cmaes"]),
        ("qmc", ["sobol", "sobol"]),
        ("halton", ["halton", "halton"]),
        ("random", ["random", "random"]),
        ("grid", ["grid", "grid"]),
    ],
)
def test_only_what_learns_has_a_start(sampler, proposers):
    search = SearchSettings(sampler=sampler)
    assert [sampler_of(search, generation) for generation in range(2)] == proposers


@pytest.mark.parametrize(
    ("edits", "found"),
    [
        (
            ["search.racing.kind=median", "search.racing.first=2"],
            "s.toml: search.racing.first: a race decides before the last epoch, but student_only has 2 "
            "epochs (got 2); lower `first` or raise `run.epochs`",
        ),
        (
            ["search.racing.kind=median", "search.racing.first=1", "resources.lanes=1"],
            "search.racing: a race needs two runs that train together, but resources.lanes is 1; raise",
        ),
        (
            ["search.racing.kind=halving", "search.racing.first=1", "search.startup=1"],
            "search.racing: a race needs two proposals that train together, but every generation has one",
        ),
        (
            ["search.sampler=grid"],
            "search.space.optimiser.learning_rate: a grid needs alternatives; give `choice`, or `low`, "
            "`high` and `steps`, or false",
        ),
        (
            [f"{RATE}{{low=0.001, high=0.1, steps=3}}"],
            "search.space.optimiser.learning_rate.steps: `steps` divides an interval for a grid, but the "
            "sampler is 'tpe'; remove it, or set `search.sampler` to \"grid\"",
        ),
        (
            ["search.sampler=grid", f"{RATE}{{low=0.001, high=0.1, steps=4}}", *REST],
            "search.trials: a part of a grid is no fair search, but the grid of student_only has 4 points "
            "(got 3); raise it to 4, the largest grid; a smaller one is then repeated",
        ),
        (
            [f"{RATE}{{low=0.001, high=0.1, steps=1}}"],
            "learning_rate.steps: Input should be greater than or equal to 2 (got 1)",
        ),
    ],
)
def test_says_what_a_search_contradicts(put_together, tiny, edits, found):
    with pytest.raises(InputError) as caught:
        put_together(tiny, *edits)
    assert found in "\n".join(map(str, caught.value.problems))


def test_a_grid_that_fits_its_budget_is_sound(put_together, tiny):
    study = put_together(tiny, "search.sampler=grid", f"{RATE}{{low=0.001, high=0.1, steps=3}}", *REST)
    assert all(len(arm.space["optimiser.learning_rate"].grid()) == 3 for arm in study.arms)


def test_a_grid_divides_an_interval_evenly_from_end_to_end():
    assert Range(low=0.0, high=1.0, steps=3).grid() == [0.0, 0.5, 1.0]
    assert Range(low=0.01, high=1.0, log=True, steps=3).grid() == pytest.approx([0.01, 0.1, 1.0])
    assert Range(low=1, high=3, integer=True, steps=9).grid() == [1, 2, 3]
    assert Choice(choice=("a", [1])).grid() == ["a", [1]]


@given(
    low=st.integers(1, 50),
    width=st.integers(1, 50),
    unit=st.floats(0, 1, exclude_max=True),
    log=st.booleans(),
    integer=st.booleans(),
)
def test_a_position_gives_its_value_back(low, width, unit, log, integer):
    found = Range(low=low, high=low + width, log=log, integer=integer)
    value = found.at(unit)
    assert 0 <= found.position(value) <= 1
    assert found.at(min(found.position(value), 1 - 1e-12)) == pytest.approx(value)


@pytest.mark.parametrize("tuning", ["nested", "fixed_holdout", "shared"])
def test_the_record_says_where_winners_were_searched_and_what_was_planned(put_together, tiny, tuning):
    edits = {"scheme": "stratified", "count": 3, "tuning": tuning}
    study = put_together(tiny, *(f"run.data.folds.{key}={value}" for key, value in edits.items()))
    row = study_row(study, [])
    assert (row.tuning, row.pairs) == (tuning, 6)
    searches = 3 if tuning == "nested" else 1
    runs = {"search": 3 * searches, "validate": 2 * searches, "confirm": 6, "test": 6}
    assert [arm["planned"] for arm in json.loads(row.arms_json)] == [runs] * 3
    assert tuple(runs) == PHASES


def test_a_fold_of_every_group_is_counted_when_the_study_is_put_together(put_together, tiny):
    study = put_together(
        tiny.replace("rows = [64, 32, 32]", "rows = [8, 8, 8]"),
        "run.batch_size=4",
        "run.data.folds.scheme=leave_one_group_out",
    )
    assert {arm.run.data.folds.count for arm in study.arms} == {24}
    assert study.fingerprint(study.arms[0].run.data, 23)
