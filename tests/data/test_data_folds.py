import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import StratifiedGroupKFold

from mmdistill.data.card import Card, Modality
from mmdistill.data.folds import (
    FoldSettings,
    _dealt_groups,
    counted,
    fold_problems,
    held_out_folds,
    labelled_mask,
    parts_of,
    strata_of,
)
from mmdistill.data.samples import Samples
from mmdistill.errors import DataError


@dataclasses.dataclass
class Rows:
    labels: np.ndarray
    groups: np.ndarray


def rows(labels, groups=None):
    labels = np.asarray(labels)
    return Rows(
        labels, np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups).astype(str)
    )


def grown(labels, groups=None, split=None, classes=3):
    labels = np.asarray(labels)
    names = np.arange(len(labels)).astype(str)
    return Samples(
        card=Card(
            name="grown", task="classification", classes=classes, modalities={"a": Modality(shape=(1,))}
        ),
        inputs={"a": np.zeros((len(labels), 1), np.float32)},
        labels=labels,
        split=np.full(len(labels), "train") if split is None else np.asarray(split),
        groups=names if groups is None else np.asarray(groups).astype(str),
        rows=names,
        fingerprint="0" * 16,
    )


def texts(problems):
    return "\n".join(map(str, problems))


def test_the_official_scheme_is_the_split_column_and_has_one_fold():
    samples = grown([0, 1, 2], split=["val", "train", "test"])
    assert parts_of(samples, FoldSettings(), 0).tolist() == ["val", "train", "test"]
    assert FoldSettings(count=7).fold_count == 1
    assert FoldSettings(count=7).identity == FoldSettings(seed=3).identity


@pytest.mark.parametrize("scheme", ["stratified", "grouped"])
@pytest.mark.parametrize("count", [2, 5, 10])
def test_every_row_is_tested_once_and_shares_of_classes_stay_equal(scheme, count):
    labels = np.repeat([0, 1, 2], [60, 120, 30])
    samples, folds = grown(labels), FoldSettings(scheme=scheme, count=count)
    parts = np.stack([parts_of(samples, folds, fold) for fold in range(count)])
    assert ((parts == "test").sum(axis=0) == 1).all()
    for part in parts:
        assert set(part) == {"train", "val", "test"}
        for label, size in ((0, 60), (1, 120), (2, 30)):
            in_test = (part[labels == label] == "test").sum()
            assert abs(in_test - size / count) < 1
            rest = size - in_test
            assert abs((part[labels == label] == "val").sum() - rest / count) <= 1


def test_grouped_folds_keep_groups_whole_and_shares_about_equal():
    generator = np.random.default_rng(3)
    groups = generator.integers(24, size=600)
    labels = (generator.random(600) < 0.2 + 0.02 * groups).astype(int)
    samples, folds = grown(labels, groups, classes=2), FoldSettings(scheme="grouped", count=4)
    for fold in range(4):
        parts = parts_of(samples, folds, fold)
        for name in np.unique(groups):
            assert len(set(parts[groups == name])) == 1
        assert abs(labels[parts == "test"].mean() - labels.mean()) < 0.05
        assert abs((parts == "test").mean() - 0.25) < 0.08


def test_grouped_folds_are_as_balanced_as_scikit_learns():
    generator = np.random.default_rng(5)
    groups = generator.integers(30, size=900)
    labels = (groups % 3 + generator.integers(2, size=900)) % 3

    def spread(fold_of):
        shares = [np.bincount(labels[fold_of == f], minlength=3) / np.bincount(labels) for f in range(5)]
        return np.std(shares, axis=0).mean()

    theirs = np.empty(900, int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        theirs[test] = fold
    ours = _dealt_groups(labels, groups.astype(str), 5, np.random.default_rng(0))
    assert spread(ours) < 1.2 * spread(theirs) + 0.005


def test_as_many_folds_as_groups_leave_one_group_out():
    groups = np.repeat(np.arange(6), 9)
    samples, folds = grown(np.arange(54) % 3, groups), FoldSettings(scheme="grouped", count=6)
    tested = [set(groups[parts_of(samples, folds, fold) == "test"]) for fold in range(6)]
    assert sorted(map(sorted, tested)) == [[i] for i in range(6)]
    assert fold_problems(samples, folds, "x") == []


DIVISIONS = st.builds(
    FoldSettings,
    scheme=st.sampled_from(["stratified", "grouped", "leave_one_group_out"]),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
    tuning=st.sampled_from(["nested", "fixed_holdout", "shared"]),
    holdout=st.integers(2, 5),
)


@settings(max_examples=40, deadline=None)
@given(folds=DIVISIONS, data=st.data(), seed=st.integers(0, 2**32))
def test_a_division_keeps_its_promises(folds, data, seed):
    generator = np.random.default_rng(seed)
    rows_per_group = 1 if folds.scheme == "stratified" else 4
    groups = np.repeat(np.arange(data.draw(st.integers(12, 30))), rows_per_group)
    labels = generator.integers(2, size=len(groups))
    labels[generator.random(len(groups)) < 0.1] = -1
    samples = grown(labels, groups, classes=2)
    if folds.scheme == "leave_one_group_out":
        unset = folds.model_dump(exclude={"count"})
        folds = counted(samples, FoldSettings(**unset))
    if fold_problems(samples, folds, "x"):
        return
    known = labels != -1
    parts = {fold: parts_of(samples, folds, fold) for fold in folds.opened_folds}
    outer = [parts[fold] for fold in range(folds.fold_count)]
    kept = known & ~np.any([part == "test" for part in outer], axis=0)
    for part in parts.values():
        # No group in two parts.
        for name in np.unique(groups):
            assert len(set(part[(groups == name) & (part != "")])) <= 1
    # Every row that is not kept for tuning is tested exactly once.
    assert (np.sum([part == "test" for part in outer], axis=0)[known & ~kept] == 1).all()
    assert kept.any() == folds.has_holdout
    if folds.has_holdout:
        tuning = parts[folds.count]
        tested = np.any([part == "test" for part in outer], axis=0)
        assert set(tuning[tested]) == {""}
        assert set(tuning[kept]) == {"train", "val"}
        assert all(set(part[kept]) == {"val"} for part in outer)
    if folds.scheme == "leave_one_group_out":
        assert all(len(set(groups[part == "test"])) == 1 for part in outer)
        assert folds.count == len(set(groups[known & ~kept]))


def test_where_a_winner_was_searched_depends_on_the_tuning():
    def tuned(tuning):
        folds = FoldSettings(scheme="grouped", count=3, tuning=tuning)
        return [folds.tuned_in(fold) for fold in range(3)], folds.search_folds, folds.opened_folds

    assert tuned("nested") == ([0, 1, 2], (0, 1, 2), range(3))
    assert tuned("fixed_holdout") == ([3, 3, 3], (3,), range(4))
    assert tuned("shared") == ([0, 0, 0], (0,), range(3))
    assert FoldSettings(scheme="grouped").identity == FoldSettings(scheme="grouped", tuning="shared").identity
    kept = FoldSettings(scheme="grouped", tuning="fixed_holdout").identity
    assert kept == ["grouped", 5, 0, "holdout", 5]


@pytest.mark.parametrize("tuning", ["fixed_holdout", "shared"])
def test_the_official_split_is_tuned_in_itself(tuning):
    with pytest.raises(ValidationError, match=f"`tuning` = '{tuning}' needs folds, but the official split"):
        FoldSettings(tuning=tuning)


def test_only_groups_make_more_than_fifty_folds():
    with pytest.raises(ValidationError, match=r"`count` must be at most 50 \(got 51\)"):
        FoldSettings(scheme="grouped", count=51)
    samples = grown(np.arange(180) % 3, np.arange(180) // 3)
    assert counted(samples, FoldSettings(scheme="leave_one_group_out")).count == 60


@pytest.mark.parametrize(
    ("groups", "changes", "found"),
    [
        (
            6,
            {"count": 4},
            "x.count: leaving one group out makes a fold of each of the 6 groups (got 4)",
        ),
        (
            2,
            {"count": 2},
            "x.scheme: leaving one group out needs at least 3 groups, but there are 2",
        ),
        (
            6,
            {"scheme": "grouped", "count": 6, "tuning": "fixed_holdout", "holdout": 3},
            "x.count: 6 grouped folds need at least 6 groups beside those kept for tuning, but there are 4",
        ),
        (
            6,
            {"scheme": "grouped", "count": 2, "tuning": "fixed_holdout", "holdout": 6},
            "x.holdout: the fold kept for tuning has no row in its train part; use other folds (`holdout`",
        ),
    ],
)
def test_says_why_groups_cannot_be_left_out_or_kept(groups, changes, found):
    samples = grown(np.arange(groups * 9) % 3, np.arange(groups * 9) // 9)
    folds = FoldSettings(**{"scheme": "leave_one_group_out"} | changes)
    assert found in texts(fold_problems(samples, folds, "x"))


def test_says_that_too_few_rows_of_a_class_are_left_beside_the_holdout():
    folds = FoldSettings(scheme="stratified", count=5, tuning="fixed_holdout")
    found = texts(fold_problems(grown([0] * 20 + [1] * 20 + [2] * 5), folds, "x"))
    assert "of a class beside those kept for tuning, but class 2 has 4; use fewer folds" in found


def test_the_seed_and_nothing_else_decides():
    samples = grown(np.arange(90) % 3)
    folds = FoldSettings(scheme="stratified", seed=4)
    first, again = parts_of(samples, folds, 2), parts_of(samples, folds, 2)
    other = parts_of(samples, FoldSettings(scheme="stratified", seed=5), 2)
    assert (first == again).all()
    assert (first != other).any()


def test_rows_without_a_label_train_in_every_fold():
    labels = np.arange(60) % 3
    labels[::4] = -1
    parts = parts_of(grown(labels), FoldSettings(scheme="stratified"), 1)
    assert set(parts[labels == -1]) == {"train"}
    groups = np.arange(60) // 5
    parts = parts_of(grown(labels, groups), FoldSettings(scheme="grouped", count=4), 1)
    held_out = np.isin(groups, groups[(parts == "test") | (parts == "val")])
    assert set(parts[(labels == -1) & held_out]) == {""}
    assert set(parts[(labels == -1) & ~held_out]) == {"train"}


def test_stratified_folds_refuse_to_split_groups():
    samples = grown(np.arange(30) % 3, np.arange(30) // 3)
    found = texts(fold_problems(samples, FoldSettings(scheme="stratified"), "x: folds"))
    assert found == (
        "x: folds.scheme: `scheme` = 'stratified' would put rows of one group into several parts; "
        "use 'grouped'"
    )


def test_names_too_few_groups_for_the_folds():
    samples = grown(np.arange(40) % 3, np.arange(40) // 10)
    found = texts(fold_problems(samples, FoldSettings(scheme="grouped", count=5), "x: folds"))
    assert (
        "x: folds.count: 5 grouped folds need at least 5 groups, but there are 4; use at most 4 folds"
        in found
    )
    found = texts(
        fold_problems(grown([0, 1, 2, 0], [0, 0, 1, 1]), FoldSettings(scheme="grouped", count=2), "x")
    )
    assert "2 grouped folds need at least 3 groups, but there are 2; add groups" in found


def test_names_a_class_with_too_few_rows_for_the_folds():
    found = texts(fold_problems(grown([0] * 20 + [1] * 20 + [2] * 4), FoldSettings(scheme="stratified"), "x"))
    assert found == (
        "x.count: 5 stratified folds need at least 5 labelled rows of a class, but class 2 has 4; "
        "use fewer folds or add rows"
    )


def test_names_a_class_that_one_group_holds_alone():
    groups = np.repeat(np.arange(6), 5)
    labels = np.where(groups == 3, 2, np.arange(30) % 2)
    found = texts(fold_problems(grown(labels, groups), FoldSettings(scheme="grouped", count=3), "x"))
    assert "has no labelled training row of class 2; use other folds" in found


def test_three_groups_in_two_folds_leave_no_part_empty_unnoticed():
    samples, folds = grown(np.arange(30) % 3, np.arange(30) // 10), FoldSettings(scheme="grouped", count=2)
    assert "has no row in its train part" in texts(fold_problems(samples, folds, "x"))


def test_regression_is_stratified_by_terciles_of_the_first_target():
    labels = np.stack([np.arange(30.0), -np.arange(30.0)], axis=1)
    assert np.bincount(strata_of(labels)).tolist() == [10, 10, 10]
    mask = labelled_mask(rows(labels), fraction=0.2, seed=0)
    assert np.bincount(strata_of(labels)[mask]).tolist() == [2, 2, 2]
    assert labelled_mask(rows(np.zeros((5, 1))), fraction=1.0, seed=0).all()


label_lists = st.lists(st.integers(-1, 4), min_size=1, max_size=80).filter(lambda ls: max(ls) >= 0)
fractions = st.floats(0.001, 1.0)


@settings(max_examples=60, deadline=None)
@given(label_lists, fractions, fractions, st.integers(0, 5))
def test_labelled_rows_are_nested_stratified_and_never_without_a_label(labels, one, other, seed):
    part = rows(labels)
    small, large = (labelled_mask(part, fraction=f, seed=seed) for f in sorted((one, other)))
    assert (large | ~small).all()
    assert not large[part.labels == -1].any()
    for label in set(labels) - {-1}:
        count = (part.labels == label).sum()
        kept = small[part.labels == label].sum()
        assert kept >= 1
        assert abs(kept - min(one, other) * count) <= 1
    assert (labelled_mask(part, fraction=1.0, seed=seed) == (part.labels != -1)).all()
    assert (
        labelled_mask(part, fraction=one, seed=seed) == labelled_mask(part, fraction=one, seed=seed)
    ).all()


def test_labelled_rows_follow_the_seed():
    part = rows(np.arange(90) % 3)
    assert (labelled_mask(part, fraction=0.3, seed=0) != labelled_mask(part, fraction=0.3, seed=1)).any()


@settings(max_examples=60, deadline=None)
@given(label_lists, st.integers(2, 6), st.integers(0, 5), st.integers(1, 12), fractions)
def test_held_out_folds_cover_the_labelled_rows_and_keep_groups_whole(labels, count, seed, size, fraction):
    part = rows(labels, np.arange(len(labels)) // size)
    mask = labelled_mask(part, fraction=fraction, seed=seed)
    if len(set(part.groups[mask])) < 2:
        with pytest.raises(
            DataError, match="out-of-fold outputs need labelled rows of two groups, but there are 1"
        ):
            held_out_folds(part, mask, count, seed)
        return
    folds = held_out_folds(part, mask, count, seed)
    assert ((folds >= 0) == mask).all()
    assert set(folds[mask]) == set(range(min(count, len(set(part.groups[mask])))))
    for name in set(part.groups[mask]):
        assert len(set(folds[mask & (part.groups == name)])) == 1


def test_held_out_folds_are_stratified():
    part = rows(np.repeat([0, 1], [40, 20]))
    mask = np.full(60, True)
    folds = held_out_folds(part, mask, 5, seed=0)
    assert np.bincount(folds[:40]).tolist() == [8] * 5
    assert np.bincount(folds[40:]).tolist() == [4] * 5
    assert (folds != held_out_folds(part, mask, 5, seed=1)).any()
