"""Importance: known shares of variance are found, and each method says what it answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmdistill.reports.importance import FANOVA_TRIALS, Importance, Search, importance, searches_of
from mmdistill.settings import Choice, Range

SPACE = {
    "rate": Range(low=1e-3, high=1e-1, log=True),
    "kind": Choice(choice=("a", ["b", 1], None)),
    "width": Range(low=1, high=64, integer=True),
}


def search(count, sampler="random", space=SPACE, loss=None):
    """Return a search whose loss varies 4 parts with log(rate), 1 part with the width, not with the kind."""
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(count):
        point = {path: dimension.at(rng.random()) for path, dimension in space.items()}
        rate, width = (SPACE[path].position(point.get(path, 1)) for path in ("rate", "width"))
        trials.append((point, 2 * rate + width if loss is None else loss))
    return Search("hinton", space, trials, sampler, startup=8, searches=1)


def shares(found):
    return {one.parameter: one.share for one in found.shares}


def test_fanova_finds_the_shares_of_the_variance():
    found = importance(search(100), "fanova")
    assert shares(found) == pytest.approx({"rate": 0.8, "width": 0.2, "kind": 0.0}, abs=0.06)
    assert [one.parameter for one in found.shares] == ["rate", "width", "kind"]
    assert (found.arm, found.method, found.trials, found.cautions) == ("hinton", "fanova", 100, ())


@pytest.mark.parametrize("method", ["mdi", "ped-anova"])
def test_the_other_methods_sum_to_one_and_name_what_is_useless(method):
    found = importance(search(100), method)
    assert sum(shares(found).values()) == pytest.approx(1)
    assert shares(found)["kind"] < 0.1
    assert found.method == method


def test_a_repeated_question_has_the_same_answer():
    assert importance(search(12), "fanova") == importance(search(12), "fanova")


def test_fanova_takes_no_more_trials_than_end_in_time(monkeypatch):
    monkeypatch.setattr("mmdistill.reports.importance.FANOVA_TRIALS", 30)
    found = importance(search(35), "fanova")
    assert found.trials == 30
    assert found.cautions == ("the first 30 of 35 trials were used, to end in time",)
    assert FANOVA_TRIALS == 256


def test_cautions_name_few_trials_and_samplers_that_do_not_fill_the_space():
    assert importance(search(12, "tpe"), "ped-anova").cautions == (
        "12 trials for 3 hyperparameters are few: the order may be chance",
        "the sampler tpe proposed all but the first 8 trials of a search where earlier ones were good, so "
        "the trials do not fill the space",
        "the best 10 % of 12 trials are 2",
    )
    assert importance(search(40, "grid"), "mdi").cautions == (
        "the trials are a grid, which an analysis of variance would answer better",
    )
    assert importance(search(40, "qmc"), "mdi").cautions == ()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (search(5), "5 complete trials are too few for 3 hyperparameters (2 for each at least)"),
        (search(9, space={"rate": SPACE["rate"]}), "1 hyperparameter was searched, and a comparison needs 2"),
        (search(9, loss=0.5), "every trial has the same loss"),
    ],
)
def test_a_search_that_cannot_answer_says_why(case, reason):
    assert importance(case, "fanova") == Importance("hinton", "fanova", (), len(case.trials), (), reason)


def test_a_search_holds_the_complete_trials_less_the_mean_of_their_fold(new_trial):
    point, metrics = {"rate": 0.01, "kind": "a", "width": 8}, {"log_loss": 0.5}
    rows = [
        new_trial("hinton", "search", number=n, fold=fold, metrics={"log_loss": loss}, parameters=point)
        for n, fold, loss in [(1, 0, 0.6), (0, 0, 0.4), (0, 1, 2.0), (1, 1, 1.0)]
    ]
    rows += [
        new_trial("hinton", "search", number=2, status="diverged", parameters=point),
        new_trial("hinton", "confirm", seed_index=0, metrics=metrics, parameters=point),
    ]
    space = {path: dimension.as_json() for path, dimension in SPACE.items()}
    folder = SimpleNamespace(
        row=SimpleNamespace(task="classification"),
        resolved={
            "order": ["student_only", "hinton"],
            "arms": {"hinton": {"space": space}},
            "search": {"sampler": "tpe", "startup": 8},
        },
        finals=lambda: [SimpleNamespace(trials=rows)],
    )
    (found,) = searches_of(folder)
    assert [loss for _, loss in found.trials] == pytest.approx([-0.1, 0.5, 0.1, -0.5])
    assert (found.arm, found.space, found.sampler, found.searches) == ("hinton", SPACE, "tpe", 2)
