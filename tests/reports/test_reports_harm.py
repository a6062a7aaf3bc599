"""Rows that turn from right to wrong, by hand and by every exchange of two arms."""

import itertools
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from mmdistill.reports.harm import harm_sets
from mmdistill.reports.readings import readings_of


def sets_of(made):
    return harm_sets(readings_of(made.tables()))


def filled(made, base_SR, arm_SR, **other):
    for seed, (base_R, arm_R) in enumerate(zip(base_SR, arm_SR, strict=True)):
        made.add_test("student_only", seed, base_R, **other)
        made.add_test("hinton", seed, arm_R, **other)
    return made


@pytest.fixture
def pair(new_study):
    return new_study([{"name": "student_only"}, {"name": "hinton", "baseline": "student_only"}])


def test_a_row_turns_where_four_of_five_seeds_say_so(pair):
    base = np.array([[1, 1, 0, 0, 1]] * 5, dtype=bool)
    arm = base.copy()
    arm[:4, 0] = False
    arm[:3, 1] = False
    arm[:, 2] = True
    (found,) = sets_of(filled(pair, base, arm))
    assert (found.arm, found.against, found.pairs, found.rows) == ("hinton", "student_only", 5, 5)
    assert found.harmed == (1, ("r0-0",))
    assert found.rescued == (1, ("r0-2",))


def test_what_chance_would_turn_is_the_mean_over_every_exchange_of_two_arms(pair):
    generator = np.random.default_rng(1)
    base, arm = generator.random((2, 5, 30)) < 0.5
    (found,) = sets_of(filled(pair, base, arm))
    counts = []
    for swapped in itertools.product([False, True], repeat=5):
        keep = np.array(swapped)[:, None]
        first, second = np.where(keep, arm, base), np.where(keep, base, arm)
        counts.append(((first & ~second).sum(axis=0) >= 4).sum())
    assert found.expected == pytest.approx(np.mean(counts))
    assert found.harmed.rows == ((base & ~arm).sum(axis=0) >= 4).sum()


def test_classes_and_groups_turn_where_their_accuracy_falls(pair):
    # Rows of even place are of class 0; two groups of six rows.
    base = np.ones((5, 12), dtype=bool)
    arm = base.copy()
    arm[:4, 0], arm[4, 2] = False, False
    arm[:3, 7] = False
    units = ["here"] * 6 + ["there"] * 6
    (found,) = sets_of(filled(pair, base, arm, units=units))
    zero, one = found.classes
    assert (zero.name, zero.rows, zero.harmed, zero.worse, zero.is_harmed) == ("0", 6, 1, 1.0, True)
    assert (one.name, one.worse, one.better, one.is_harmed) == ("1", 0.6, 0.0, False)
    here, there = found.groups
    assert (here.name, here.rows, here.harmed, here.rescued) == ("here", 6, 1, 0)
    assert (here.is_harmed, there.is_harmed, here.is_rescued) == (True, False, False)
    # Of five seeds that differ at least four fall on one side with 6 of 32 patterns; of three never.
    assert found.expected_classes == found.expected_groups == pytest.approx(6 / 32)


def test_each_row_counts_the_seeds_of_its_own_fold(pair):
    for fold, arm in enumerate(([False, True], [False, False])):
        for seed in range(3):
            pair.add_test("student_only", seed, [True, True], fold=fold, pair=f"f{fold}-s{seed}")
            pair.add_test("hinton", seed, arm, fold=fold, pair=f"f{fold}-s{seed}")
    (found,) = sets_of(pair)
    assert (found.pairs, found.rows) == (6, 4)
    assert found.harmed.names == ("r0-0", "r1-0", "r1-1")
    assert found.expected == pytest.approx(3 / 8)


def test_what_is_kept_grows_with_the_predictions_and_not_with_pairs_times_rows(pair):
    arms, folds, rows = ("student_only", "hinton"), 200, 100
    count = folds * rows
    named = [f"f{n // rows}" for n in range(count)]
    wrong = np.arange(count) % 4 == 0
    tables = [
        pa.table(
            {
                "arm": [arm] * count,
                "pair_id": named,
                "row": [f"r{n}" for n in range(count)],
                "unit": named,
                "label": np.zeros(count),
                "targets": pa.array([[]] * count, pa.list_(pa.float64())),
                "outputs": pa.array(
                    np.eye(2)[(wrong & (arm == "hinton")).astype(int)].tolist(), pa.list_(pa.float64())
                ),
            }
        )
        for arm in arms
    ]
    readings = readings_of(pair.tables())._replace(predictions=pa.concat_tables(tables))
    tracemalloc.start()
    (found,) = harm_sets(readings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.pairs, found.rows, found.harmed.rows) == (folds, count, count // 4)
    # One number per pair and row of one arm would be 32 MB.
    assert peak < 8 * folds * count / 2


def test_regression_counts_rows_whose_absolute_error_grew(new_study, new_trial, new_prediction):
    arms = [{"name": "student_only"}, {"name": "hinton", "baseline": "student_only"}]
    made = new_study(arms, task="regression", score="ccc")
    guesses = {"student_only": (1.0, 2.0, 3.0), "hinton": (0.5, 2.0, 3.5)}
    for arm, outputs in guesses.items():
        for seed in range(5):
            run = new_trial(arm, "test", seed_index=seed, metrics={"ccc": 0.5})
            made.trials.append(run)
            truth = zip(outputs, (1.0, 2.0, 4.0), strict=True)
            made.predictions += [
                new_prediction(run, f"r{row}", f"r{row}", y, [x]) for row, (x, y) in enumerate(truth)
            ]
    (found,) = sets_of(made)
    assert (found.harmed.names, found.rescued.names) == (("r0",), ("r2",))
    assert (found.classes, found.groups) == ((), ())
    assert found.expected == pytest.approx(2 * 6 / 32)


def test_arms_without_predictions_have_no_harm_set(made):
    made.predictions = [row for row in made.predictions if row.arm != "hinton"]
    assert [one.arm for one in sets_of(made)] == ["self_distillation"]
    made.predictions = [row for row in made.predictions if row.arm != "student_only"]
    assert sets_of(made) == ()
