"""Folds: what counts as one replicate, where winners were searched, and which arms can be compared."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from scipy import stats

from mmdistill.cli.printing import plain
from mmdistill.reports.ablation import summarise_tables
from mmdistill.reports.render import as_csv, markdown
from mmdistill.statistics import t_interval


def arm_of(ablation, name):
    return next(arm for arm in ablation.arms if arm.name == name)


def test_shared_tuning_is_stamped_on_every_table(made):
    made.study = dataclasses.replace(made.study, tuning="shared")
    ablation = summarise_tables(made.tables())
    stamp = "tuning = shared: winners were searched in fold 0 alone"
    assert f"- Warning: {stamp}" in markdown(ablation)
    assert all(
        line["stamps"].startswith(stamp) and line["tuning"] == "shared"
        for line in csv.DictReader(io.StringIO(as_csv(ablation)))
    )
    assert plain(ablation)["stamps"][0].startswith(stamp)


def test_a_holdout_for_tuning_is_named_and_spares_the_validation_share(new_study):
    made = new_study(["student_only", "hinton"], tuning="fixed_holdout")
    for fold in range(5):
        made.fill({"student_only": 0.5, "hinton": 0.7}, seeds=2, fold=fold)
    ablation = summarise_tables(made.tables())
    assert ablation.scheme == ("folds", 1 / 4, "rows")
    assert "no fold tests (fixed_holdout)." in " ".join(markdown(ablation).split())


def test_arms_may_differ_in_where_their_winners_were_searched(new_study):
    arms = [
        {"name": "student_only", "folds": "stratified", "tuning": "nested"},
        {"name": "student_kept", "folds": "grouped", "tuning": "fixed_holdout"},
        {"name": "student_shared", "folds": "stratified", "tuning": "shared"},
    ]
    made = new_study(arms, tuning="mixed")
    for fold in range(4):
        made.fill({"student_only": 0.5, "student_shared": 0.6}, seeds=2, fold=fold)
        for seed in range(2):
            made.add_test("student_kept", seed, [True, False], fold=fold, pair=f"kept~{fold}~{seed}")
    ablation = summarise_tables(made.tables())
    shares = {arm.name: arm.scheme.test_share for arm in ablation.arms}
    assert shares == pytest.approx({"student_only": 4 / 9, "student_kept": 1 / 3, "student_shared": 4 / 9})
    text = " ".join(markdown(ablation).split())
    assert "no fold tests (fixed_holdout): student_kept." in text
    assert "inside each outer fold (nested): student_only." in text
    assert "Warning: tuning = shared for student_shared: winners were searched in fold 0 alone" in text
    lines = list(csv.DictReader(io.StringIO(as_csv(ablation))))
    assert [(line["folds"], line["tuning"]) for line in lines] == [(a["folds"], a["tuning"]) for a in arms]


def subject_means(made, arm, subjects):
    """Return the mean over seeds of each subject's accuracy, from the predictions one by one."""
    found = {}
    for row in made.predictions:
        if row.arm == arm:
            hit = row.outputs.index(max(row.outputs)) == row.label
            found.setdefault(row.unit, {}).setdefault(row.seed_index, []).append(hit)
    return np.array([np.mean([np.mean(h) for h in found[subject].values()]) for subject in subjects])


@pytest.fixture
def grouped(new_study):
    """Three folds of four subjects with unequal rows."""
    made = new_study(["student_only", "hinton"], contrasts=[("Better?", "hinton", "student_only")])
    for fold in range(3):
        units = [f"p{fold}-{min(i // 8, 3)}" for i in range(40)]
        made.fill({"student_only": 0.4, "hinton": 0.95}, seeds=4, rows=40, fold=fold, units=units)
    return made


def test_grouped_folds_are_tested_over_subjects(grouped):
    ablation = summarise_tables(grouped.tables())
    subjects = [f"p{fold}-{number}" for fold in range(3) for number in range(4)]
    ours, theirs = (subject_means(grouped, arm, subjects) for arm in ("hinton", "student_only"))
    claim = ablation.contrasts[0]
    assert ablation.scheme == ("subjects", 0.0, "groups")
    assert claim.seeds.n == 12
    assert claim.seeds == pytest.approx(t_interval(ours - theirs))
    assert arm_of(ablation, "hinton").score == pytest.approx(t_interval(ours))
    flips = stats.permutation_test((ours - theirs,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert claim.p == pytest.approx(flips.pvalue)
    assert claim.crossed.mean == pytest.approx(claim.seeds.mean)
    assert (claim.crossed.n, claim.crossed.low < claim.crossed.mean < claim.crossed.high) == (4, True)
    assert "Better? Yes: hinton beats student_only by" in ablation.sentences[0]
    assert "(subjects 0." in ablation.sentences[0]


def test_names_of_single_rows_make_no_subjects(new_study):
    made = new_study(["student_only", "hinton"])
    for fold in range(3):
        units = [f"name {fold}-{i}" for i in range(40)]
        made.fill({"student_only": 0.4, "hinton": 0.95}, seeds=4, rows=40, fold=fold, units=units)
    assert summarise_tables(made.tables()).scheme == ("folds", pytest.approx(3 / 4), "rows")


def test_one_seed_of_grouped_folds_resamples_subjects_alone(grouped):
    grouped.trials = [run for run in grouped.trials if run.seed_index == 0]
    kept = {run.trial_id for run in grouped.trials}
    grouped.predictions = [row for row in grouped.predictions if row.trial_id in kept]
    claim = summarise_tables(grouped.tables()).contrasts[0]
    assert claim.seeds.n == 12
    width = claim.seeds.high - claim.seeds.low
    assert claim.crossed.high - claim.crossed.low == pytest.approx(width, rel=0.15)


def test_a_concordance_of_several_subjects_per_fold_is_compared_by_fold(new_study, new_trial, new_prediction):
    made = new_study(["student_only", "hinton"], task="regression", score="ccc")
    for arm, noise in (("student_only", 0.9), ("hinton", 0.3)):
        for fold in range(4):
            rng = np.random.default_rng([fold, int(10 * noise)])
            run = new_trial(arm, "test", seed_index=0, fold=fold, metrics={"ccc": 1 - noise / 2})
            made.trials.append(run)
            for i in range(20):
                y = float(i)
                guess = [y + noise * rng.standard_normal()]
                made.predictions.append(
                    new_prediction(run, f"r{fold}-{i}", f"p{fold}-{i % 2}", y, guess, [y])
                )
    assert summarise_tables(made.tables()).scheme == ("folds", pytest.approx(4 / 9), "groups")


def test_subjects_without_predictions_have_no_score(grouped):
    grouped.predictions = [row for row in grouped.predictions if row.arm != "hinton"]
    ablation = summarise_tables(grouped.tables())
    assert arm_of(ablation, "hinton").score.n == 0
    assert ablation.contrasts[0].verdict is None


@pytest.fixture
def two_schemes(new_study):
    """Arms of one study on the official split and on subjects left out one by one."""
    arms = ["student_only", "hinton", {"name": "student_loso", "baseline": "student_only"}]
    arms.append({"name": "hinton_loso", "baseline": "student_loso"})
    contrasts = [("Better?", "hinton_loso", "student_loso"), ("Other folds?", "hinton_loso", "hinton")]
    made = new_study(arms, contrasts=contrasts)
    made.fill({"student_only": 0.5, "hinton": 0.8})
    for place, (arm, accuracy) in enumerate({"student_loso": 0.5, "hinton_loso": 0.8}.items()):
        for fold in range(7):
            for seed in range(2):
                hit_U = np.random.default_rng([place, fold, seed]).random(30) < accuracy
                pair = f"loso~fold{fold}~confirm{seed}"
                made.add_test(arm, seed, hit_U, fold=fold, units=[f"p{fold}"] * 30, pair=pair)
    return made


def test_arms_with_other_folds_are_told_apart_and_never_compared(two_schemes, rows_of):
    ablation = summarise_tables(two_schemes.tables())
    assert [arm.scheme.replicate for arm in ablation.arms] == ["seeds", "seeds", "subjects", "subjects"]
    assert ablation.contrasts[0].seeds.n == 7
    assert ablation.contrasts[0].verdict == "helps"
    assert ablation.sentences[1] == (
        "Other folds? Not known yet: hinton_loso and hinton share no finished pair; they were tested on "
        "other folds, so no pair can be shared."
    )
    assert all(not arm.missing for arm in ablation.arms)
    assert ablation.warnings == (
        "student_loso is not compared with student_only: it was tested on other folds",
    )
    text = markdown(ablation)
    shown = rows_of(text, "arm ")
    assert [row["n"] for row in shown] == ["8 seeds", "8 seeds", "7 subjects", "7 subjects"]
    assert "minus baseline [replicates] [x units]" in shown[0]
    assert "n counts seeds or subjects;" in text


def test_an_arm_that_has_not_begun_is_not_on_other_folds(made):
    arms = [*json.loads(made.study.arms_json), {"name": "late", "baseline": "student_only"}]
    contrasts = json.dumps([{"question": "Late?", "arm": "late", "against": "hinton"}])
    made.study = dataclasses.replace(made.study, arms_json=json.dumps(arms), contrasts_json=contrasts)
    (said,) = summarise_tables(made.tables()).sentences
    assert said == "Late? Not known yet: late and hinton share no finished pair."
