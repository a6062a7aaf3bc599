import numpy as np
import pytest

from mmdistill.data.card import Card, Modality
from mmdistill.data.samples import check, content_fingerprint

REGRESSION = Card(name="tiny", task="regression", targets=("x", "y"), modalities={"a": Modality(shape=(2,))})


def changed(array, **places):
    copy = array.copy()
    for place, value in places.items():
        copy[int(place.removeprefix("at"))] = value
    return copy


def texts(problems):
    return "\n".join(map(str, problems))


def test_sound_rows_have_no_problem(samples):
    assert check(samples(), "tiny") == []
    assert check(samples(card=REGRESSION, labels=np.zeros((12, 2), np.float32)), "tiny") == []


def test_names_modality_count_and_first_rows_of_values_that_are_not_finite(samples):
    values = np.ones((12, 2), np.float32)
    values[[1, 4, 5, 9], 0] = np.nan
    values[4, 1] = np.inf
    found = texts(check(samples(inputs={"a": values}), "tiny"))
    assert found == (
        "tiny: x_a: every value must be finite, but 5 are not, rows 1, 4, 5 (4 in all); "
        "remove these rows or fill in their values"
    )


def test_names_a_wrong_shape(samples):
    found = texts(check(samples(inputs={"a": np.ones((12, 3), np.float32)}), "tiny"))
    assert "tiny: x_a: must have the shape (12, 2) after flattening, but has (12, 3)" in found


def test_names_row_label_and_allowed_range(samples):
    found = texts(check(samples(labels=changed(np.arange(12) % 3, at3=7, at4=-2)), "tiny"))
    assert "tiny: label: row 3 has the label 7, allowed are 0 to 2" in found
    assert "tiny: label: row 4 has the label -2, allowed are 0 to 2" in found


def test_only_training_rows_may_lack_a_label(samples):
    assert check(samples(labels=changed(np.arange(12) % 3, at0=-1)), "tiny") == []
    found = texts(check(samples(labels=changed(np.arange(12) % 3, at0=-1, at6=-1, at11=-1)), "tiny"))
    assert "only training rows may be without a label (-1), rows 6, 11; label these rows" in found


def test_names_classes_without_a_training_row(samples):
    found = texts(check(samples(labels=changed(np.arange(12) % 3, at2=0, at5=1)), "tiny"))
    assert "tiny: label: every class needs a labelled training row, class 2 without" in found


def test_names_groups_in_several_splits(samples):
    groups = np.array(["p", "p", "q", "r", "s", "t", "p", "q", "r", "s", "v", "w"])
    found = texts(check(samples(groups=groups), "tiny"))
    assert "tiny: group: a group must be in one split only, groups p, q, r (4 in all) in several" in found


def test_names_empty_and_unknown_splits(samples):
    split = np.array(["train"] * 9 + ["dev"] * 3)
    found = texts(check(samples(split=split), "tiny"))
    assert "tiny: split: the split 'dev' is unknown; use one of train, val, test" in found
    assert "no row belongs to the split 'val'" in found
    assert "no row belongs to the split 'test'" in found
    without_test = texts(check(samples(split=split), "tiny", ("train", "val")))
    assert "no row belongs to the split 'test'" not in without_test


def test_names_repeated_rows(samples):
    rows = changed(np.arange(12).astype(str), at1="0")
    assert "tiny: rows: row names must differ, row 0 given twice" in texts(check(samples(rows=rows), "tiny"))


def test_names_targets_that_are_not_finite(samples):
    labels = np.zeros((12, 2), np.float32)
    labels[3, 1] = np.nan
    found = texts(check(samples(card=REGRESSION, labels=labels), "tiny"))
    assert found.startswith("tiny: y: every target must be finite, but 1 are not, row 3;")
    found = texts(check(samples(card=REGRESSION, labels=np.zeros(12)), "tiny"))
    assert "targets must have the shape (12, 2), but have (12,)" in found


def test_labels_of_a_wrong_shape_are_named(samples):
    found = texts(check(samples(labels=np.zeros((12, 2), int)), "tiny"))
    assert "must have one class per row, but has the shape (12, 2) for 12 rows" in found


def test_reports_every_problem_at_once(samples):
    bad = samples(
        inputs={"a": np.full((12, 2), np.nan, np.float32)},
        labels=changed(np.arange(12) % 3, at7=9),
        groups=np.full(12, "p"),
        rows=np.full(12, "r"),
    )
    assert len(check(bad, "tiny")) == 4


def test_narrowing_drops_test_rows_and_other_modalities(samples):
    whole = samples(inputs={"a": np.ones((12, 2), np.float32), "b": np.zeros((12, 2), np.float32)})
    part = whole.narrowed(with_test=False, modalities=["b"])
    assert list(part.inputs) == ["b"]
    assert len(part) == len(part.labels) == len(part.inputs["b"]) == 9
    assert "test" not in part.split
    assert part.fingerprint == whole.fingerprint


@pytest.mark.parametrize("change", ["value", "name", "label", "shape"])
def test_the_fingerprint_sees_every_change(change):
    inputs, labels = {"a": np.zeros((4, 2), np.float32)}, np.zeros(4, np.int64)
    before = content_fingerprint(inputs, labels)
    assert before == content_fingerprint({"a": np.zeros((4, 2), np.float32)}, np.zeros(4, np.int64))
    if change == "value":
        inputs["a"][3, 1] = 1e-30
    elif change == "name":
        inputs["b"] = inputs.pop("a")
    elif change == "label":
        labels[2] = 1
    else:
        inputs["a"] = inputs["a"].reshape(2, 4)
    after = content_fingerprint(inputs, labels)
    assert after != before
    assert len(after) == 16
