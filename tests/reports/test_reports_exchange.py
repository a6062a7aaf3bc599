"""What an arm is worth in labels: against a known curve, at the ends of what was measured, by coverage."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mmdistill.reports.arms import Declared
from mmdistill.reports.evidence import Arm, Scheme, per_replicate
from mmdistill.reports.exchange import Labels, exchange, labels_of
from mmdistill.reports.openings import Openings
from mmdistill.reports.readings import Readings, readings_of
from mmdistill.reports.render_curves import worth_text

FRACTIONS = (0.1, 0.25, 0.5, 1.0)
# A student alone that gains .1 with every factor of ten.
GAIN = 0.1 / math.log(10)


def alone(fraction):
    return 0.8 + GAIN * math.log(fraction)


SEEDS = Scheme("seeds", 0.0, "rows")


def readings(scores_AP, scheme=SEEDS):
    """Return readings of arms with given scores per pair; an arm called alone* has no teacher."""
    arms = {
        name: Arm(
            {f"p{p}": {"metrics": {"accuracy": float(s)}, "fold": p} for p, s in enumerate(scores_P)}, None
        )
        for name, scores_P in scores_AP.items()
    }
    baseline = next(iter(arms))
    declared = [Declared(name, recipe="student_only" if "alone" in name else name) for name in arms]
    return Readings(
        study={"baseline": baseline, "score": "accuracy", "seed": 0},
        declared=declared,
        trials={},
        basis="test",
        groups={},
        schemes=dict.fromkeys(arms, scheme),
        arms=arms,
        openings=Openings({}),
    )


def worth_of(score_P, curve_FP=None, fraction=0.25, **options):
    """Return what an arm with these scores is worth against a curve, one row of scores per fraction."""
    if curve_FP is None:
        curve_FP = [np.full(len(score_P), alone(f)) for f in FRACTIONS]
    names = [f"alone{f:g}" for f in FRACTIONS]
    found = readings(dict(zip(names, curve_FP, strict=True)) | {"hinton": score_P}, **options)
    labels = {name: Labels(f, "{}") for name, f in zip(names, FRACTIONS, strict=True)}
    (curve,) = exchange(found, labels | {"hinton": Labels(fraction, "{}")}).curves
    (worth,) = curve.worths
    return curve, worth


def test_an_arm_on_the_curve_is_worth_its_place_on_it():
    curve, worth = worth_of(alone(0.4) + np.array([0.001, -0.001, 0.002, -0.002]))
    assert curve.fractions == FRACTIONS
    assert curve.fitted == pytest.approx([alone(f) for f in FRACTIONS])
    assert (worth.side, worth.n) == ("inside", 4)
    assert worth.equal == pytest.approx(0.4, rel=1e-3)
    # Where a straight curve has no noise of its own, the interval is that of the mean, carried over.
    half = 3.182446 * np.std([0.001, -0.001, 0.002, -0.002], ddof=1) / 2
    expected = [math.exp((alone(0.4) + sign * half - 0.8) / GAIN) for sign in (-1, 1)]
    assert (worth.low, worth.high) == pytest.approx(expected, rel=0.01)
    assert (worth.open_low, worth.open_high) == (False, False)
    assert worth_text(worth) == "40% [37%, 43%]"


@pytest.mark.parametrize(
    ("score", "side", "text"),
    [(0.95, "above", ">=100% [>=100%, >=100%]"), (0.5, "below", "<=10% [<=10%, <=10%]")],
)
def test_nothing_is_extrapolated(score, side, text):
    _, worth = worth_of(score + np.array([0.001, -0.001, 0.0]))
    assert (worth.side, worth.open_low, worth.open_high) == (side, side == "below", side == "above")
    assert worth_text(worth) == text


def test_an_interval_that_passes_the_largest_share_is_open():
    _, worth = worth_of(alone(0.9) + 0.02 * np.array([1, -1, 0.5, -0.5]))
    assert worth.open_high
    assert not worth.open_low
    assert worth_text(worth) == "90% [46%, >=100%]"


def test_a_curve_that_falls_is_levelled_between_neighbours():
    curve_FP = [np.full(3, value) for value in (0.60, 0.74, 0.70, 0.80)]
    curve, worth = worth_of(np.array([0.719, 0.720, 0.721]), curve_FP)
    assert curve.fitted == pytest.approx([0.60, 0.72, 0.72, 0.80])
    assert [score.mean for score in curve.scores] == pytest.approx([0.60, 0.74, 0.70, 0.80])
    # The fewest labels that reach the score; the interval holds all that do.
    assert worth.equal == pytest.approx(0.25, rel=1e-2)
    assert worth.high >= 0.49


def test_the_narrowest_interval_still_holds_its_estimate():
    _, worth = worth_of(alone(0.4) + 1e-6 * np.array([1, -1, 2, -2]))
    assert worth.low < worth.equal < worth.high
    assert worth.high / worth.low < 1.001


def test_folds_have_the_corrected_interval():
    scores = alone(0.4) + 0.004 * np.array([1, -1, 0.5, -0.5])
    _, plain = worth_of(scores)
    _, folds = worth_of(scores, scheme=Scheme("folds", 0.25, "rows"))
    ratio = math.log(folds.high / folds.low) / math.log(plain.high / plain.low)
    assert ratio == pytest.approx(math.sqrt((1 / 4 + 0.25) * 4), rel=0.02)


def test_the_interval_covers_the_true_exchange_rate():
    rng, hits, times = np.random.default_rng(0), 0, 200
    for _ in range(times):
        pair_P = 0.01 * rng.standard_normal(8)
        curve_FP = [alone(f) + pair_P + 0.01 * rng.standard_normal(8) for f in FRACTIONS]
        _, worth = worth_of(alone(0.35) + pair_P + 0.01 * rng.standard_normal(8), curve_FP)
        hits += worth.low <= 0.35 <= worth.high
    assert 0.90 <= hits / times <= 0.99


@pytest.fixture
def by_subject(new_study):
    """A label curve on three folds of unequal subjects, with the accuracy of each arm on each subject."""
    names = [f"student_only@{n}" for n in range(3)]
    scores = dict(zip([*names, "hinton"], (0.5, 0.65, 0.8, 0.7), strict=True))
    study = new_study([*({"name": n, "recipe": "student_only"} for n in names), "hinton"], baseline=names[0])
    for fold in range(3):
        units = [f"p{fold}-{min(row // 30, 2)}" for row in range(120)]
        study.fill(scores, seeds=2, rows=120, fold=fold, units=units)
    hits = {}
    for row in study.predictions:
        hit = row.outputs.index(max(row.outputs)) == row.label
        hits.setdefault((row.arm, row.unit), {}).setdefault(row.seed_index, []).append(hit)
    units = sorted({unit for _, unit in hits})
    means = {key: np.mean([np.mean(seed) for seed in by_seed.values()]) for key, by_seed in hits.items()}
    return study, {arm: [means[arm, unit] for unit in units] for arm in scores}


FEW = dict(zip(["student_only@0", "student_only@1", "student_only@2"], (0.2, 0.5, 1.0), strict=True))


def test_under_grouped_folds_the_exchange_rate_counts_subjects(by_subject):
    study, score_AU = by_subject
    labels = {name: Labels(share, "{}") for name, share in (FEW | {"hinton": 0.2}).items()}
    (curve,) = exchange(readings_of(study.tables()), labels).curves
    # Nine subjects are nine independent pairs with the subject's mean over seeds.
    alike = readings({arm.replace("student_only", "alone"): score_U for arm, score_U in score_AU.items()})
    renamed = {name.replace("student_only", "alone"): found for name, found in labels.items()}
    (expected,) = exchange(alike, renamed).curves
    (worth,), (reference,) = curve.worths, expected.worths
    assert (worth.n, worth.score.n) == (9, 9)
    assert (worth.equal, worth.low, worth.high) == pytest.approx(
        (reference.equal, reference.low, reference.high)
    )
    assert curve.fitted == pytest.approx(expected.fitted)


def test_subjects_without_predictions_have_no_exchange_rate(by_subject):
    study, _ = by_subject
    study.predictions = [row for row in study.predictions if row.arm != "hinton"]
    labels = {name: Labels(share, "{}") for name, share in (FEW | {"hinton": 0.2}).items()}
    (curve,) = exchange(readings_of(study.tables()), labels).curves
    assert curve.worths == ()


def test_two_seeds_of_one_fold_are_one_replicate_and_have_no_exchange_rate():
    scores = {"alone1": [0.5, 0.52], "alone2": [0.6, 0.62], "alone3": [0.7, 0.72], "hinton": [0.63, 0.64]}
    labels = {name: Labels(share, "{}") for name, share in zip(scores, (0.2, 0.5, 1.0, 0.2), strict=True)}
    found = readings(scores, Scheme("folds", 0.25, "rows"))
    for arm in found.arms.values():
        arm.runs["p1"]["fold"] = 0
    assert exchange(found, labels) == (
        (),
        "the arms without a teacher share fewer than 2 folds, or two of them have the same label fraction",
    )


def test_an_arm_with_one_fold_of_several_has_no_exchange_rate():
    scores = {"alone1": [0.5, 0.52], "alone2": [0.6, 0.62], "alone3": [0.7, 0.72], "hinton": [0.63]}
    labels = {name: Labels(share, "{}") for name, share in zip(scores, (0.2, 0.5, 1.0, 0.2), strict=True)}
    found = readings(scores, Scheme("folds", 0.25, "rows"))
    found.arms["hinton"].runs["p0 again"] = found.arms["hinton"].runs["p0"]
    for name in ("alone1", "alone2", "alone3"):
        found.arms[name].runs["p0 again"] = found.arms[name].runs["p0"]
    (curve,) = exchange(found, labels).curves
    assert (curve.n, curve.worths) == (3, ())


def test_a_value_per_pair_is_never_taken_for_one_per_subject():
    arm = Arm({"p0": {"fold": 0}}, None)
    with pytest.raises(ValueError, match="a value per pair has no value per subject"):
        per_replicate({"p0": 1.0}, arm, Scheme("subjects", 0.0, "groups"))


def with_labels(study, fractions):
    """Return a study whose arms ran at these label fractions."""
    study.trials = [
        replace(trial, config_json=json.dumps({"data": {"label_fraction": fractions[trial.arm]}}))
        for trial in study.trials
    ]
    return study.tables()


def test_label_fractions_come_from_the_settings_of_the_runs(new_study):
    arms = [
        {"name": name, "recipe": name.split("@", maxsplit=1)[0]}
        for name in ("student_only", "student_only@2", "student_only@3")
    ]
    study = new_study([*arms, "hinton"])
    study.fill({"student_only": 0.5, "student_only@2": 0.6, "student_only@3": 0.8, "hinton": 0.65}, rows=200)
    fractions = {"student_only": 0.2, "student_only@2": 0.4, "student_only@3": 1.0, "hinton": 0.2}
    tables = with_labels(study, fractions)
    assert {arm: found.fraction for arm, found in labels_of(tables["trials"]).items()} == fractions
    (curve,) = exchange(readings_of(tables), labels_of(tables["trials"])).curves
    assert curve.arms == ("student_only", "student_only@2", "student_only@3")
    assert (curve.n, [worth.arm for worth in curve.worths]) == (8, ["hinton"])
    assert 0.4 < curve.worths[0].equal < 1


def test_a_study_without_a_label_axis_says_what_it_lacks(made):
    tables = made.tables()
    found = exchange(readings_of(tables), labels_of(tables["trials"]))
    assert found.curves == ()
    assert found.reason == (
        "the arms without a teacher have 0 label fraction(s), and a label curve needs 3: add a design of the "
        "kind axis over data.label_fraction"
    )


def test_two_students_alone_at_one_fraction_are_no_curve(new_study):
    names = [f"student_only@{n}" for n in range(4)]
    study = new_study([{"name": name, "recipe": "student_only"} for name in names], baseline=names[0])
    study.fill(dict.fromkeys(names, 0.6), seeds=2)
    tables = with_labels(study, dict(zip(names, (0.2, 0.4, 1.0, 1.0), strict=True)))
    found = exchange(readings_of(tables), labels_of(tables["trials"]))
    assert found.reason == (
        "the arms without a teacher share fewer than 2 seeds, or two of them have the same label fraction"
    )


def with_settings(study, settings):
    """Return the tables of a study with these settings by arm."""
    study.trials = [replace(trial, config_json=json.dumps(settings[trial.arm])) for trial in study.trials]
    return study.tables()


@pytest.mark.parametrize(
    ("other", "teachers", "is_alone"),
    [
        ({}, [], True),
        ({"terms": {"concordance": {"weight": 0.5}}}, [], False),
        ({"epochs": 10}, [], False),
        ({}, ["joint"], False),
    ],
)
def test_a_control_that_is_the_student_alone_ends_the_curve(new_study, other, teachers, is_alone):
    shares = {"student_only": 0.1, "student_only@2": 0.25, "student_only@3": 0.5}
    arms = [{"name": name, "recipe": "student_only"} for name in shares]
    control = {"name": "ccc.supervised", "recipe": "ccc", "teachers": teachers}
    study = new_study([*arms, control | {"note": "also student_only@4"}])
    study.fill(dict.fromkeys(shares, 0.5) | {"ccc.supervised": 0.8}, seeds=3)
    settings = {
        name: {"epochs": 5, "terms": {}, "data": {"label_fraction": share}} for name, share in shares.items()
    }
    none = {"epochs": 5, "terms": {"concordance": {"weight": 0.0}}, "data": {"label_fraction": 1.0}}
    tables = with_settings(study, settings | {"ccc.supervised": none | other})
    (curve,) = exchange(readings_of(tables), labels_of(tables["trials"])).curves
    assert curve.arms == (*shares, *(["ccc.supervised"] if is_alone else []))
    assert [worth.arm for worth in curve.worths] == ([] if is_alone else ["ccc.supervised"])


def test_nothing_confirmed_is_said(made):
    made.trials = [trial for trial in made.trials if trial.phase == "search"]
    made.predictions, made.openings = [], []
    tables = made.tables()
    assert exchange(readings_of(tables), labels_of(tables["trials"])).reason == "no arm was confirmed yet"
