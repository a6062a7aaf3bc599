"""Ranks over data sets: against SciPy, a published critical difference, and by false positives."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmdistill.reports.arms import Declared
from mmdistill.reports.evidence import Arm, Scheme
from mmdistill.reports.openings import Openings
from mmdistill.reports.ranks import critical_difference, ranks
from mmdistill.reports.readings import Readings, readings_of


def studies(score_DA, arms=None, **study):
    """Return a tested study per data set, each with two seeds about the mean score of every arm."""
    names = arms or [f"arm{a}" for a in range(len(score_DA[0]))]
    return [
        Readings(
            study={
                "name": f"study{d}",
                "dataset": f"data{d}",
                "data_fingerprint": f"{d}",
                "score": "accuracy",
                "trials": 4,
            }
            | study,
            declared=[Declared(name) for name in names],
            trials={},
            basis="test",
            groups={},
            schemes=dict.fromkeys(names, Scheme("seeds", 0.0, "rows")),
            arms={
                name: Arm(
                    {f"p{s}": {"metrics": {"accuracy": value + 0.01 * (s - 0.5)}} for s in (0, 1)}, None
                )
                for name, value in zip(names, score_A, strict=True)
            },
            openings=Openings({}),
        )
        for d, score_A in enumerate(score_DA)
    ]


def test_ranks_and_friedmans_test_agree_with_scipy():
    score_DA = np.random.default_rng(0).random((8, 4)) + np.array([0, 0.3, 0.6, 0.9])
    found = ranks(studies(score_DA))
    assert found.arms == ("arm3", "arm2", "arm1", "arm0")
    assert found.datasets == tuple(f"data{d}" for d in range(8))
    assert np.array(found.scores) == pytest.approx(score_DA[:, ::-1])
    assert found.mean_ranks == pytest.approx(stats.rankdata(-score_DA[:, ::-1], axis=1).mean(axis=0))
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*score_DA.T).pvalue)
    assert found.cautions == ("8 data sets are few: Friedman's and Nemenyi's p-values are rough below 10",)


def test_the_critical_difference_is_that_of_demsar():
    # Demsar (2006), table 5: q = 2.569 for four classifiers; his example has 14 data sets and CD = 1.25.
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, level=0.1) == pytest.approx(1.12, abs=0.005)


def test_cliques_hold_neighbours_within_the_critical_difference():
    # Always in the same order: mean ranks 1 to 6, 2.18 apart at least to differ with 12 data sets.
    found = ranks(studies(np.tile(np.arange(6.0), (12, 1))))
    assert found.critical_difference == pytest.approx(2.177, abs=0.001)
    assert found.cliques == tuple(tuple(f"arm{a - i}" for i in range(3)) for a in (5, 4, 3, 2))
    p_AA = np.array(found.nemenyi)
    distance_AA = np.abs(np.subtract.outer(found.mean_ranks, found.mean_ranks))
    assert np.array_equal(p_AA < 0.05, distance_AA > found.critical_difference)


def test_arms_that_friedman_does_not_tell_apart_are_one_clique():
    found = ranks(studies([[1, 2, 3], [3, 1, 2], [2, 3, 1], [1, 2, 3]]))
    assert found.friedman_p > 0.05
    assert found.cliques == (found.arms,)


def test_arms_that_tie_everywhere_do_not_differ():
    found = ranks(studies(np.full((5, 3), 0.5)))
    assert found.mean_ranks == (2.0, 2.0, 2.0)
    assert found.friedman_p == 1.0


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((3, 4), "3 data set(s) are too few to compare arms over data sets, which takes 4 at least"),
        ((5, 2), "the studies share 2 arm(s), and Friedman's test needs 3"),
    ],
)
def test_too_few_data_sets_or_arms_are_ranked_without_a_test(shape, reason):
    found = ranks(studies(np.random.default_rng(1).random(shape)))
    assert found.reason == reason
    assert len(found.mean_ranks) == shape[1]
    assert (found.friedman_p, found.critical_difference, found.nemenyi, found.cliques) == (None,) * 3 + ((),)


def test_studies_on_the_same_data_are_one_data_set():
    one, two = studies([[0.6, 0.8], [0.9, 0.7]], data_fingerprint="same", dataset="digits")
    found = ranks([one, two])
    assert found.datasets == ("digits",)
    assert found.scores == ((0.75, 0.75),)
    assert found.mean_ranks == (1.5, 1.5)


def test_an_arm_counts_that_any_study_on_each_data_set_read():
    one, two = studies([[0.6, 0.8, 0.7], [0.9, 0.7, 0.6]], data_fingerprint="same", dataset="digits")
    (other,) = studies([[0.5, 0.6, 0.7]])
    del one.arms["arm2"], other.arms["arm1"]
    two.arms["arm0"].runs["p2"] = {"metrics": {"accuracy": 0.9}}
    found = ranks([one, two, other])
    assert found.arms == ("arm0", "arm2")
    # Every run counts once: two of .6 and three of .9; arm2 of the second study alone.
    assert np.array(found.scores) == pytest.approx(np.array([[(2 * 0.6 + 3 * 0.9) / 5, 0.6], [0.5, 0.7]]))
    assert found.studies == ((("study0", "study1"), ("study1",)), (("study0",), ("study0",)))
    assert found.left_out == {"arm1": "only on digits"}


@pytest.mark.parametrize(
    ("settings", "columns", "told"),
    [
        ({"data.label_fraction": 0.5}, {}, "data.label_fraction (study0: 1.0, study1: 0.5)"),
        ({"epochs": 15}, {}, "epochs (study0: 40, study1: 15)"),
        ({"optimiser.rate": "searched"}, {}, "optimiser.rate (study0: none, study1: searched)"),
        ({}, {"trials": 8}, "search.trials (study0: 4, study1: 8)"),
    ],
)
def test_studies_with_unlike_settings_are_never_averaged(settings, columns, told):
    one, two = studies([[0.6, 0.8], [0.9, 0.7]], data_fingerprint="same", dataset="digits")
    (other,) = studies([[0.5, 0.6]])
    usual = {"data.label_fraction": 1.0, "epochs": 40}
    one = one._replace(settings={"arm0": usual, "arm1": usual})
    two = two._replace(settings={"arm0": usual, "arm1": usual | settings}, study=two.study | columns)
    found = ranks([one, two, other])
    assert found.datasets == ("data0",)
    why = f"its studies study0, study1 differ in {told}; give one of them, or like ones"
    assert found.left_out == {"data set digits": why}
    assert ranks([two, other]).left_out == {}


def test_studies_on_the_same_data_that_share_no_arm_are_compared_apart():
    one, two = studies([[0.6, 0.8], [0.9, 0.7]], data_fingerprint="same", dataset="digits")
    two = two._replace(arms={"other": two.arms["arm0"]})
    why = "its studies study0, study1 share no arm; compare them apart"
    assert ranks([one, two]).left_out == {"data set digits": why}


def test_other_labels_or_lengths_on_other_data_are_a_caution():
    one, two = studies([[0.6, 0.8], [0.9, 0.7]])
    one = one._replace(settings={"arm0": {"data.label_fraction": 1.0, "batch_size": 8}})
    two = two._replace(settings={"arm0": {"data.label_fraction": 0.5, "batch_size": 64}})
    told = "The data sets differ in data.label_fraction of arm0 (data0: 1.0, data1: 0.5)"
    assert ranks([one, two]).cautions == (told,)


def test_settings_are_read_without_what_tells_runs_apart(made):
    data = {"dataset": "here", "label_fraction": 0.5}
    config = json.dumps({"data": data, "seed": 3, "fold": 1, "optimiser": {"rate": 0.1}})
    searched = {"optimiser.rate": 0.1, "terms.softened_logits.weight": None}
    made.trials = [replace(run, config_json=config, parameters=searched) for run in made.trials]
    found = readings_of(made.tables()).settings
    assert found["hinton"] == {"data.label_fraction": 0.5, "optimiser.rate": "searched"}


def test_data_sets_of_one_name_are_told_apart_by_their_studies():
    found = ranks(studies([[0.6, 0.8], [0.9, 0.7]], dataset="planted"))
    assert found.datasets == ("study0", "study1")


def test_what_does_not_count_is_named(made):
    first, second = studies([[0.6, 0.8, 0.7], [0.9, 0.7, 0.8]], arms=["student_only", "hinton", "new"])
    del second.arms["new"]
    frozen = Declared("student_only.frozen", frozen="hinton")
    first = first._replace(
        declared=[*first.declared, frozen], arms=first.arms | {frozen.name: first.arms["hinton"]}
    )
    closed = replace(made.study, name="closed")
    made.study, made.predictions, made.openings = closed, [], []
    made.trials = [trial for trial in made.trials if trial.phase != "test"]
    found = ranks([first, second, readings_of(made.tables())])
    assert set(found.arms) == {"student_only", "hinton"}
    assert found.left_out == {
        "study closed": "its test split was not opened yet",
        "new": "only on data0",
        "student_only.frozen": "frozen: biased towards another arm",
    }


def test_no_study_at_all_is_no_error():
    found = ranks([])
    assert (found.arms, found.datasets, found.mean_ranks) == ((), (), ())


def test_equal_arms_are_rarely_told_apart():
    rng = np.random.default_rng(2)
    told, critical = 0, critical_difference(4, 10)
    for _ in range(300):
        rank_DA = stats.rankdata(rng.random((10, 4)), axis=1)
        told += bool(np.ptp(rank_DA.mean(axis=0)) > critical)
    assert told <= stats.binom.ppf(0.999, 300, 0.05)
