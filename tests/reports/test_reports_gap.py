"""Shares of the gap to the teacher, and what validation flattered."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmdistill.records.rows import StageRow
from mmdistill.reports.gap import gap_shares, optimism_gaps
from mmdistill.reports.readings import readings_of
from mmdistill.reports.render_curves import curve_notes, curves_of
from mmdistill.statistics import ratio_of_means, t_interval

ARMS = ["student_only", {"name": "hinton", "baseline": "student_only"}]


def stage(kind, key, pair, *, arm=None, upstream=(), **metrics):
    return StageRow(
        stage_key=key,
        stage=kind,
        name=kind,
        seed=1,
        fold=0,
        pair_id=pair,
        order_id="confirm-1",
        arm=arm,
        cache_hit=False,
        reason="no entry",
        cpu_s=1.0,
        metrics=metrics,
        upstream=list(upstream),
    )


def validated(study, scores):
    """Give every confirmed run of the arms these validation scores, by pair in order."""
    study.trials = [
        replace(trial, metrics=trial.metrics | {"accuracy": scores[trial.arm][trial.seed_index]})
        if trial.phase == "confirm"
        else trial
        for trial in study.trials
    ]


@pytest.fixture
def taught(new_study):
    """A student alone at .6, an arm at .7, teachers at .8 (joint) and .65 (audio), spread over six pairs."""

    def build(arms=ARMS, teacher=0.8):
        study = new_study(arms)
        study.fill({"student_only": 0.55, "hinton": 0.65}, seeds=6)
        noise = 0.01 * np.random.default_rng(0).standard_normal((3, 6))
        validated(study, {"student_only": 0.6 + noise[0], "hinton": 0.7 + noise[1]})
        for seed in range(6):
            joint = {
                "joint_accuracy": teacher + noise[2, seed],
                "audio_accuracy": 0.55,
                "joint_log_loss": 9.0,
            }
            study.stages += [
                stage("teacher_outputs", f"outputs{seed}", f"f0-s{seed}", **joint),
                stage("student", f"s{seed}", f"f0-s{seed}", arm="hinton", upstream=[f"outputs{seed}"]),
            ]
        return study, 0.1 + noise[1] - noise[0], teacher - 0.6 + noise[2] - noise[0]

    return build


def shares_of(study):
    tables = study.tables()
    return gap_shares(readings_of(tables), tables["stages"])


def test_the_share_is_the_ratio_of_mean_gaps_on_validation(taught):
    study, closed, gap = taught()
    (found,) = shares_of(study)
    assert (found.arm, found.against, found.teacher) == ("hinton", "student_only", "joint")
    assert found.gap == pytest.approx(t_interval(gap))
    assert found.share == pytest.approx(ratio_of_means(closed, gap))
    assert found.share.mean == pytest.approx(closed.mean() / gap.mean())
    assert found.reason is None


def test_the_table_tells_the_largest_share(taught):
    study, *_ = taught()
    tables = study.tables()
    note = curve_notes(curves_of(readings_of(tables), tables))[-1]
    (found,) = shares_of(study)
    low, high = found.share[1:3]
    assert note.endswith(
        "largest share closed of the gap from student_only to the teacher: "
        f"{found.share.mean:.2f} [{low:.2f}, {high:.2f}] (hinton, n = 6 seeds), on validation, where "
        "alone teachers are scored"
    )


def test_a_teacher_that_only_the_search_tried_bounds_nothing(taught):
    study, *_ = taught()
    (expected,) = shares_of(study)
    study.stages += [
        stage("teacher_outputs", "tried", "f0-search0", loser_accuracy=0.99, joint_accuracy=0.99),
        stage("student", "tried too", "f0-search0", arm="hinton", upstream=["tried"]),
    ]
    assert shares_of(study) == (expected,)


def test_a_teacher_no_better_than_the_student_bounds_nothing(taught):
    (found,) = shares_of(taught(teacher=0.602)[0])
    assert found.share is None
    assert found.reason == (
        "joint does not beat student_only by more than its interval, so its score is no bound"
    )


def test_a_gap_that_is_hardly_known_is_not_divided_by(taught):
    study, *_ = taught()
    # Teachers .01 to .21 above the student alone: an interval from .03 to .19.
    beyond = {f"outputs{seed}": 0.01 + 0.04 * seed for seed in range(6)}
    confirmed = [run for run in study.trials if (run.arm, run.phase) == ("student_only", "confirm")]
    alone = {run.pair_id: run.metrics["accuracy"] for run in confirmed}
    study.stages = [
        replace(row, metrics={"joint_accuracy": alone[row.pair_id] + beyond[row.stage_key]})
        if row.stage_key in beyond
        else row
        for row in study.stages
    ]
    (found,) = shares_of(study)
    assert found.gap.low > 0
    assert found.share is None
    assert found.reason == (
        "how far joint beats student_only is not clear: the interval is wider than the gap itself"
    )
    tables = study.tables()
    assert curve_notes(curves_of(readings_of(tables), tables))[-1] == (
        "No share of the gap where the 95 % interval of teacher minus student alone includes 0 or is wider "
        "than that difference: hinton"
    )


def test_a_teacher_that_learns_along_is_read_from_the_runs_themselves(taught):
    study, *_ = taught()
    study.stages = []
    study.trials = [
        replace(trial, metrics=trial.metrics | {"teacher_accuracy": 0.9})
        if (trial.arm, trial.phase) == ("hinton", "confirm")
        else trial
        for trial in study.trials
    ]
    (found,) = shares_of(study)
    assert found.teacher == "the live teacher"
    assert found.share.mean == pytest.approx(1 / 3, abs=0.05)


def test_frozen_arms_and_arms_without_a_teacher_have_no_share(taught, made):
    assert shares_of(taught(arms=["student_only", ARMS[1] | {"frozen": "student_only"}])[0]) == ()
    assert shares_of(made) == ()


def test_optimism_is_validation_minus_test_by_pair(taught):
    study, *_ = taught()
    tables = study.tables()
    alone, hinton = optimism_gaps(readings_of(tables))
    score = {(t.arm, t.phase, t.seed_index): t.metrics["accuracy"] for t in study.trials}
    expected = [score["hinton", "confirm", seed] - score["hinton", "test", seed] for seed in range(6)]
    assert (alone.arm, hinton.arm) == ("student_only", "hinton")
    assert hinton.difference == pytest.approx(t_interval(expected))


def test_subjects_have_no_score_on_validation_so_their_folds_are_compared(new_study):
    study = new_study(ARMS)
    for fold in range(4):
        units = [f"p{fold}-{row // 10}" for row in range(40)]
        study.fill({"student_only": 0.55, "hinton": 0.65}, seeds=2, rows=40, fold=fold, units=units)
    noise = 0.02 * np.random.default_rng(0).random((2, 4))
    level = {"student_only": 0.6 + noise[0], "hinton": 0.7 + noise[1]}
    study.trials = [
        run
        if run.phase == "test"
        else replace(run, metrics=run.metrics | {"accuracy": float(level[run.arm][run.fold])})
        for run in study.trials
    ]
    for run in study.trials:
        if (run.arm, run.phase) == ("hinton", "confirm"):
            study.stages += [
                stage("teacher_outputs", f"o{run.pair_id}", run.pair_id, joint_accuracy=0.8),
                stage("student", run.pair_id, run.pair_id, arm="hinton", upstream=[f"o{run.pair_id}"]),
            ]
    readings = readings_of(study.tables())
    assert readings.schemes["hinton"].replicate == "subjects"
    (found,) = shares_of(study)
    gap_F = 0.8 - level["student_only"]
    # Nadeau and Bengio: one of four folds is tested, a quarter of the rest is validation.
    half = stats.t.ppf(0.975, 3) * math.sqrt((1 / 4 + 4 / 9) * gap_F.var(ddof=1))
    assert (found.replicate, found.gap.n) == ("folds", 4)
    assert found.gap[:3] == pytest.approx((gap_F.mean(), gap_F.mean() - half, gap_F.mean() + half))
    closed_F = level["hinton"] - level["student_only"]
    assert found.share == pytest.approx(ratio_of_means(closed_F, gap_F, test_share=4 / 9))
    tested = [run for run in study.trials if (run.arm, run.phase) == ("hinton", "test")]
    test_F = [np.mean([run.metrics["accuracy"] for run in tested if run.fold == f]) for f in range(4)]
    _, hinton = optimism_gaps(readings)
    assert hinton.difference == pytest.approx(t_interval(level["hinton"] - test_F, test_share=4 / 9))
    assert "(hinton, n = 4 folds)" in curve_notes(curves_of(readings, study.tables()))[-1]


def test_there_is_no_optimism_to_tell_before_the_test_was_opened(made):
    made.trials = [trial for trial in made.trials if trial.phase != "test"]
    made.predictions, made.openings = [], []
    assert optimism_gaps(readings_of(made.tables())) == ()
