"""Every number of the table is computed a second way."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mmdistill.reports.ablation import summarise_tables
from mmdistill.reports.budget import budget_of, cpu_seconds
from mmdistill.reports.claims import turned_round
from mmdistill.statistics import t_interval


def arm_of(ablation, name):
    return next(arm for arm in ablation.arms if arm.name == name)


def accuracies(made, arm):
    runs = [run for run in made.trials if (run.arm, run.phase) == (arm, "test")]
    return np.array([run.metrics["accuracy"] for run in sorted(runs, key=lambda run: run.seed_index)])


def test_scores_and_differences_agree_with_scipy(made):
    ablation = summarise_tables(made.tables())
    hinton, student = accuracies(made, "hinton"), accuracies(made, "student_only")
    arm = arm_of(ablation, "hinton")
    low, high = stats.ttest_1samp(hinton, 0).confidence_interval()
    assert (arm.score.mean, arm.score.low, arm.score.high) == pytest.approx((hinton.mean(), low, high))
    test = stats.ttest_rel(hinton, student)
    low, high = test.confidence_interval()
    claim = arm.against_baseline
    assert (claim.seeds.mean, claim.seeds.low, claim.seeds.high) == pytest.approx(
        ((hinton - student).mean(), low, high)
    )
    flips = stats.permutation_test(
        (hinton - student,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert claim.p == pytest.approx(flips.pvalue)
    assert ablation.basis == "test"
    assert ablation.openings == 1


def test_the_crossed_interval_has_the_same_centre_and_is_wider_than_units_alone(made):
    claim = arm_of(summarise_tables(made.tables()), "hinton").against_baseline
    assert claim.crossed.mean == pytest.approx(claim.seeds.mean)
    assert claim.crossed.low < claim.seeds.mean < claim.crossed.high


def test_the_planned_family_is_adjusted_alone(made):
    ablation = summarise_tables(made.tables())
    first, second = ablation.contrasts
    assert sorted([first.adjusted_p, second.adjusted_p]) == pytest.approx(
        sorted([min(first.p, second.p) * 2, max(first.p, second.p, 2 * min(first.p, second.p))])
    )
    assert first.verdict == "helps"
    assert arm_of(ablation, "self_distillation").against_baseline == second
    assert arm_of(ablation, "hinton").against_baseline.question is None


def test_two_arms_have_one_p_and_one_verdict_wherever_they_are_compared(new_study):
    nulls = [f"null{n}" for n in range(12)]
    changed = {"name": "x", "base": "student_only", "change": "something"}
    made = new_study(["student_only", changed, *nulls], reference="x")
    made.fill(dict.fromkeys(["student_only", *nulls], 0.6) | {"x": 0.75}, seeds=8)
    ablation = summarise_tables(made.tables())
    x, student = arm_of(ablation, "x"), arm_of(ablation, "student_only")
    assert x.against_base == x.against_baseline
    assert student.against_reference == turned_round(x.against_baseline)
    # One family of all that nobody planned, in which each two arms are counted once.
    claims = [x.against_baseline]
    claims += [c for arm in ablation.arms[2:] for c in (arm.against_baseline, arm.against_reference)]
    adjusted = stats.false_discovery_control([claim.p for claim in claims])
    assert [claim.adjusted_p for claim in claims] == pytest.approx(adjusted)


def test_a_planned_contrast_is_no_exploratory_one_the_other_way_round(made):
    contrasts = [{"question": "Worse?", "arm": "student_only", "against": "hinton"}]
    made.study = dataclasses.replace(made.study, contrasts_json=json.dumps(contrasts))
    ablation = summarise_tables(made.tables())
    planned, hinton = ablation.contrasts[0], arm_of(ablation, "hinton").against_baseline
    assert arm_of(ablation, "student_only").against_reference == planned
    assert (hinton.question, hinton.adjusted_p) == ("Worse?", planned.p)
    assert (hinton.verdict, hinton.seeds.mean) == ("helps", -planned.seeds.mean)


def test_the_sentence_has_the_numbers_of_the_claim(made):
    ablation = summarise_tables(made.tables())
    claim = ablation.contrasts[0]
    assert ablation.sentences[0].startswith(
        f"Do privileged modalities help? Yes: hinton beats self_distillation by {claim.seeds.mean:.3f} "
        f"(seeds {claim.seeds.low:.3f} to {claim.seeds.high:.3f}, seeds x rows "
        f"{claim.crossed.low:.3f} to {claim.crossed.high:.3f}, n = 10, Holm p = "
    )


def test_a_harm_and_a_tie_are_said_plainly(made):
    contrasts = [
        {"question": "Does it help?", "arm": "student_only", "against": "hinton"},
        {"question": "Does it help?", "arm": "twin", "against": "hinton"},
    ]
    made.study = dataclasses.replace(made.study, contrasts_json=json.dumps(contrasts))
    for found in (made.trials, made.predictions):
        found += [
            dataclasses.replace(row, arm="twin", trial_id=row.trial_id + "t")
            for row in found
            if row.arm == "hinton"
        ]
    ablation = summarise_tables(made.tables())
    assert "No, it harms: student_only falls behind hinton by 0." in ablation.sentences[0]
    assert "No: twin equals hinton within 0.005, difference +0.000" in ablation.sentences[1]
    assert arm_of(ablation, "twin").against_reference.verdict == "equivalent"


def test_arms_come_in_the_order_of_the_study_file(made):
    assert [arm.name for arm in summarise_tables(made.tables()).arms] == [
        "student_only",
        "self_distillation",
        "hinton",
    ]


def test_a_diverged_lane_is_counted_once_and_its_pair_is_listed(made):
    lost = [run for run in made.trials if run.arm == "hinton" and run.seed_index == 4]
    made.trials = [run for run in made.trials if run not in lost]
    made.trials += [
        dataclasses.replace(run, status="diverged", metrics={}, error="task, step 3") for run in lost
    ]
    made.predictions = [row for row in made.predictions if row.trial_id not in {run.trial_id for run in lost}]
    ablation = summarise_tables(made.tables())
    arm = arm_of(ablation, "hinton")
    assert arm.budget.diverged == 1
    assert arm.score.n == arm.against_baseline.seeds.n == arm.against_baseline.crossed.n == 9
    assert arm.missing == ("f0-s4 (diverged)",)
    assert "hinton lacks the pairs f0-s4 (diverged)" in ablation.warnings
    kept = [s for s in range(10) if s != 4]
    expected = (accuracies(made, "student_only")[kept] - np.delete(accuracies_with_gap(made), 4)).mean()
    assert arm.against_baseline.seeds.mean == pytest.approx(-expected)


def accuracies_with_gap(made):
    found = np.full(10, np.nan)
    for run in made.trials:
        if (run.arm, run.phase, run.status) == ("hinton", "test", "complete"):
            found[run.seed_index] = run.metrics["accuracy"]
    return found


def test_a_missing_pair_is_left_out_of_the_difference_and_listed(made):
    made.trials = [
        r for r in made.trials if not (r.arm == "student_only" and r.seed_index == 2 and r.phase == "test")
    ]
    made.predictions = [row for row in made.predictions if row.trial_id != "student_only-test-2-0"]
    ablation = summarise_tables(made.tables())
    claim = arm_of(ablation, "hinton").against_baseline
    assert claim.missing == ("f0-s2",)
    assert claim.seeds.n == 9
    assert arm_of(ablation, "hinton").score.n == 10
    assert arm_of(ablation, "student_only").missing == ("f0-s2 (not finished)",)


def test_one_pair_has_a_difference_and_no_verdict(new_study):
    made = new_study(["student_only", "hinton"], contrasts=[("Better?", "hinton", "student_only")])
    rng = np.random.default_rng(0)
    made.add_test("student_only", 0, rng.random(50) < 0.5)
    made.add_test("hinton", 0, rng.random(50) < 0.9)
    ablation = summarise_tables(made.tables())
    claim = ablation.contrasts[0]
    assert claim.verdict == "cannot tell"
    assert math.isnan(claim.seeds.low)
    assert math.isnan(claim.crossed.low)
    assert "seeds: no interval" in ablation.sentences[0]
    assert any("n = 1 is too small" in line for line in ablation.warnings)


def test_too_few_pairs_are_named_with_the_number_that_would_do(made):
    made.trials = [run for run in made.trials if run.seed_index is None or run.seed_index < 5]
    ablation = summarise_tables(made.tables())
    warning = next(line for line in ablation.warnings if "too small" in line)
    assert "n = 5 is too small" in warning
    assert "cannot go below p = 0.12 after Holm; n = 7 could reach 0.05" in warning
    assert {claim.verdict for claim in ablation.contrasts} == {"cannot tell"}


def test_an_unplanned_effect_that_cannot_pass_alone_is_named(new_study):
    arms = [{"name": name, "baseline": "student_only"} for name in ("student_only", "one", "two", "three")]
    study = new_study(arms, contrasts=[("Does one help?", "one", "student_only")], reference="student_only")
    study.fill({"student_only": 0.5, "one": 0.5, "two": 0.99, "three": 0.5}, seeds=6)
    ablation = summarise_tables(study.tables())
    (warning,) = [line for line in ablation.warnings if "unplanned" in line]
    # `two` and `three` against the baseline; the planned one counts in a family of its own.
    assert warning.startswith(
        "With n = 6 no p can be below 0.031: one true effect alone among the 2 unplanned "
        "comparison(s) cannot pass Benjamini-Hochberg, unless 2 are that clear together; plan the "
        "contrasts that matter, or take n = 7"
    )
    found = next(arm.against_baseline for arm in ablation.arms if arm.name == "two")
    assert (found.p, found.adjusted_p, found.verdict) == (2 / 64, 4 / 64, "cannot tell")
    study.fill({"student_only": 0.5, "one": 0.5, "two": 0.99, "three": 0.5}, seeds=1, first=6)
    assert not any("unplanned" in line for line in summarise_tables(study.tables()).warnings)


def test_before_the_test_is_opened_validation_is_shown_without_verdicts(made):
    made.trials = [run for run in made.trials if run.phase != "test"]
    made.predictions, made.openings = [], []
    ablation = summarise_tables(made.tables())
    assert ablation.basis == "validation"
    assert {claim.verdict for claim in ablation.contrasts} == {None}
    assert "Not tested yet: on validation hinton minus self_distillation is +0." in ablation.sentences[0]
    assert any("validation, test not opened yet" in line for line in ablation.warnings)
    assert ablation.openings == 0


def test_the_best_trial_of_a_search_is_the_one_the_protocol_prefers(new_study, new_trial):
    made = new_study(["student_only"])
    for number, (loss, accuracy) in enumerate([(0.5, 0.95), (0.3, 0.9)]):
        metrics = {"log_loss": loss, "accuracy": accuracy}
        made.trials.append(new_trial("student_only", "search", number=number, metrics=metrics))
    assert summarise_tables(made.tables()).arms[0].score.mean == 0.9


def test_while_searching_the_best_trial_is_shown(new_study):
    made = new_study(["student_only", "hinton"], contrasts=[("Better?", "hinton", "student_only")])
    made.add_search("hinton", [0.9, 0.4, 0.6])
    ablation = summarise_tables(made.tables())
    assert ablation.basis == "search"
    assert arm_of(ablation, "hinton").score.mean == pytest.approx(0.8)
    assert arm_of(ablation, "student_only").score.n == 0
    assert ablation.sentences == ("Better? Not known yet: hinton and student_only share no finished pair.",)


def test_an_empty_study_has_an_empty_table(new_study):
    ablation = summarise_tables(new_study(["student_only"], reference=None).tables())
    assert arm_of(ablation, "student_only").score.n == 0


def add_regression(made, new_trial, new_prediction, arm, noise, targets):
    for seed in range(8):
        rng = np.random.default_rng([seed, targets])
        truth = rng.standard_normal((60, targets))
        guess = truth + noise * np.random.default_rng([seed, int(10 * noise)]).standard_normal((60, targets))
        found = [
            2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
            for x, y in zip(guess.T, truth.T, strict=True)
        ]
        run = new_trial(arm, "test", seed_index=seed, metrics={"ccc": float(np.mean(found)), "rmse": noise})
        made.trials.append(run)
        made.predictions += [
            new_prediction(
                run, f"r{i}", f"r{i}", truth[i, 0] if targets == 1 else math.nan, guess[i], truth[i]
            )
            for i in range(60)
        ]


@pytest.mark.parametrize("targets", [1, 2])
def test_a_regression_study_resamples_concordance(new_study, new_trial, new_prediction, targets):
    made = new_study(["student_only", "hinton"], task="regression", score="ccc")
    add_regression(made, new_trial, new_prediction, "student_only", 0.9, targets)
    add_regression(made, new_trial, new_prediction, "hinton", 0.4, targets)
    made.trials.append(new_trial("hinton", "search", number=0, metrics={"ccc": 0.7, "rmse": 1.0}))
    arm = arm_of(summarise_tables(made.tables()), "hinton")
    claim = arm.against_baseline
    assert claim.crossed.mean == pytest.approx(claim.seeds.mean)
    assert claim.crossed.low < claim.crossed.mean < claim.crossed.high
    assert claim.verdict == "helps"
    assert (arm.log_loss, arm.calibration_error, arm.worst_class) == (None, None, None)
    assert arm.budget.best_of == ((1, pytest.approx(0.3)),)


def with_folds(made, folds, seeds, units=None):
    for arm, accuracy in (("student_only", 0.6), ("hinton", 0.8)):
        for fold in range(folds):
            for seed in range(seeds):
                rng = np.random.default_rng([fold, seed, len(arm)])
                made.add_test(arm, seed, rng.random(40) < accuracy, fold=fold, units=units and units(fold))


def fold_means(made, arm, folds):
    runs = [run for run in made.trials if (run.arm, run.phase) == (arm, "test")]
    return np.array(
        [np.mean([r.metrics["accuracy"] for r in runs if r.fold == fold]) for fold in range(folds)]
    )


def test_folds_are_averaged_over_seeds_and_corrected(new_study):
    made = new_study(["student_only", "hinton"])
    with_folds(made, 5, 3)
    ablation = summarise_tables(made.tables())
    claim = arm_of(ablation, "hinton").against_baseline
    difference = fold_means(made, "hinton", 5) - fold_means(made, "student_only", 5)
    error = difference.std(ddof=1) * math.sqrt(1 / 5 + 5 / 16)
    assert ablation.scheme == ("folds", 0.3125, "rows")
    assert claim.seeds.n == 5
    assert claim.seeds.high - claim.seeds.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert claim.p == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / error, 4))
    assert claim.crossed.n == 3


def test_leaving_one_subject_out_tests_over_subjects(new_study):
    made = new_study(["student_only", "hinton"])
    with_folds(made, 6, 2, lambda fold: [f"subject {fold}"] * 40)
    ablation = summarise_tables(made.tables())
    claim = arm_of(ablation, "hinton").against_baseline
    difference = fold_means(made, "hinton", 6) - fold_means(made, "student_only", 6)
    assert ablation.scheme == ("subjects", 0.0, "groups")
    assert claim.seeds == pytest.approx(t_interval(difference))
    assert claim.p == pytest.approx(0.03125)


def test_predictions_of_other_rows_give_no_crossed_interval(made):
    made.predictions = [p for p in made.predictions if not (p.arm == "hinton" and p.row == "r0-7")]
    ablation = summarise_tables(made.tables())
    claim = arm_of(ablation, "hinton").against_baseline
    assert math.isnan(claim.crossed.low)
    assert claim.verdict == "cannot tell"
    assert any("lacks predictions or compares other rows" in line for line in ablation.warnings)


def as_dicts(rows):
    return [dataclasses.asdict(row) for row in rows]


def test_the_budget_follows_its_definitions(new_trial):
    losses = [0.9, 0.8, 0.85, 0.7, 0.75, math.nan, 0.6, 0.65]
    rows = [
        new_trial("a", "search", number=i, metrics={"log_loss": x}, stage_cpu_s=5.0)
        for i, x in enumerate(losses)
    ]
    rows[5] = dataclasses.replace(rows[5], status="diverged")
    rows += [new_trial("a", "confirm", seed_index=i, stage_cpu_s=4.0 + i) for i in range(2)]
    rows += [new_trial("a", "test", seed_index=i, stage_cpu_s=100.0) for i in range(2)]
    budget = budget_of(as_dicts(reversed(rows)), 3, "classification")
    assert budget.best_of == ((4, 0.7), (8, 0.6))
    assert budget.still_improving is True
    assert (budget.trials, budget.dimensions, budget.diverged, budget.failed) == (8, 3, 1, 0)
    # 8 searched and 2 confirmed runs at 1 s; teachers once for the search, once per confirmed seed.
    assert budget.cpu_s == pytest.approx(8 + 2 + 5 + 4 + 5)


@pytest.mark.parametrize(
    ("losses", "improving"), [([0.5, 0.6, 0.7, 0.8], False), ([0.8, 0.7, 0.6, 0.5], True), ([], None)]
)
def test_still_improving_looks_at_the_last_quarter(new_trial, losses, improving):
    rows = [new_trial("a", "search", number=i, metrics={"log_loss": x}) for i, x in enumerate(losses)]
    assert budget_of(as_dicts(rows), 1, "classification").still_improving is improving


def test_twelve_trials_are_shown_at_4_8_and_12(new_trial):
    rows = [new_trial("a", "search", number=i, metrics={"log_loss": 1 / (i + 1)}) for i in range(12)]
    assert [n for n, _ in budget_of(as_dicts(rows), 1, "classification").best_of] == [4, 8, 12]


def test_cpu_seconds_of_nothing_are_zero():
    assert cpu_seconds([]) == 0


def test_notes_come_from_the_arm_and_from_its_repeated_runs(made):
    stamp = "selection degenerate: equals fixed:joint"
    made.trials = [
        dataclasses.replace(run, note=stamp) if (run.arm, run.phase) == ("hinton", "test") else run
        for run in made.trials
    ]
    assert arm_of(summarise_tables(made.tables()), "hinton").notes == (stamp,)


def test_reports_load_neither_torch_nor_ray():
    code = (
        "import sys, mmdistill.reports.render, mmdistill.reports.query, mmdistill.reports.status\n"
        "assert not {'torch', 'ray', 'optuna', 'sklearn', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
