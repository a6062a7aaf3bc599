import os

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from mmdistill.data import DataSettings, FoldSettings, check_data, open_dataset, open_fold
from mmdistill.data.datasets.planted import Planted
from mmdistill.data.datasets.table import Table
from mmdistill.errors import ConfigError, DataError, UnknownNameError
from mmdistill.settings import declared_ranges, problems_of

SMALL = {"rows": (60, 30, 30)}


def planted(**changes):
    return DataSettings(**({"dataset": "planted", "options": SMALL, "student": ("face",)} | changes))


def texts(problems):
    return "\n".join(map(str, problems))


def test_opens_a_registered_data_set_with_its_options():
    assert open_dataset(planted(options={"classes": 3})) == Planted(classes=3)


def test_opens_a_table_by_card_and_by_folder(table):
    path = table()
    for name in (str(path), str(path.parent)):
        assert open_dataset(DataSettings(dataset=name, student=("a",))) == Table(path=name)
    found = [open_fold(DataSettings(dataset=str(p), student=("a",)), 0) for p in (path, path.parent)]
    assert found[0].fingerprint == found[1].fingerprint


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"dataset": "plantd"},
            UnknownNameError,
            r"data\.dataset: no data set is called 'plantd'; did you mean 'planted'\?",
        ),
        (
            {"dataset": "zzz"},
            UnknownNameError,
            r"known: digits_views, planted, table; or give the path of a card\.json",
        ),
        (
            {"dataset": "no/where"},
            DataError,
            r"data\.dataset: there is nothing under the path 'no/where'; give the path",
        ),
        (
            {"options": {"clases": 3}},
            ConfigError,
            r"data\.options: clases: unknown key; did you mean `classes`\?",
        ),
        (
            {"options": {"classes": 1}},
            ConfigError,
            r"data\.options: classes: .*greater than or equal to 2 \(got 1\)",
        ),
        ({"dataset": "table"}, ConfigError, r"data\.options: .*"),
    ],
)
def test_says_why_a_data_set_cannot_be_opened(changes, error, message):
    with pytest.raises(error, match=message):
        open_dataset(planted(**changes))
    with pytest.raises(error, match=message):
        open_fold(planted(**changes), 0)
    assert check_data(planted(**changes), "s.toml: data")[0].where.startswith("s.toml: data.")


def test_options_do_not_fit_a_path(table):
    settings = DataSettings(dataset=str(table()), options={"seed": 1}, student=("a",))
    assert "s: data.options: seed: unknown key" in texts(check_data(settings, "s: data"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": ()}, "at least 1 item"),
        ({"student": ("face", "face")}, r"`student` must name each modality once, but is \['face', 'face'\]"),
        ({"privileged": ("audio", "audio")}, "`privileged` must name each modality once"),
        (
            {"privileged": ("audio", "face")},
            "a modality is either `student` or `privileged`, but face is both",
        ),
        ({"label_fraction": 0.0}, "greater than 0"),
        ({"label_fraction": 1.5}, "less than or equal to 1"),
        ({"folds": {"count": 1}}, "greater than or equal to 2"),
        ({"folds": {"scheme": "random"}}, "'official', 'stratified', 'grouped' or 'leave_one_group_out'"),
        ({"colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_refuses_settings_that_contradict_themselves(changes, message):
    with pytest.raises(ValidationError, match=message) as caught:
        planted(**changes)
    assert problems_of(caught.value, "s.toml: data", DataSettings)


def test_no_data_setting_is_searchable_and_the_digest_survives_json():
    settings = planted(folds=FoldSettings(scheme="grouped"))
    assert declared_ranges(settings) == {}
    assert DataSettings.model_validate(settings.as_json()).digest == settings.digest


def test_names_the_modalities_that_the_card_lacks():
    settings = planted(student=("fase",), privileged=("audio", "zzz"))
    found = check_data(settings, "s.toml: data")
    assert texts(found) == (
        "s.toml: data.student: 'planted' has no modality 'fase'; "
        "did you mean 'face'? known: face, audio, decoy, static\n"
        "s.toml: data.privileged: 'planted' has no modality 'zzz'; known: face, audio, decoy, static"
    )
    with pytest.raises(ConfigError, match=r"data\.student: 'planted' has no modality 'fase'"):
        open_fold(settings, 0)


def test_sound_settings_have_no_problem():
    assert check_data(planted(privileged=("audio", "decoy"), label_fraction=0.25), "s") == []
    assert check_data(planted(folds={"scheme": "grouped", "count": 10}), "s") == []


def test_names_a_label_fraction_below_one_row_per_class():
    found = texts(check_data(planted(label_fraction=0.05), "s.toml: data"))
    assert found == (
        "s.toml: data.label_fraction: 0.05 of the training rows must be at least one row of each class, "
        "but class 0 has 15 in fold 0; use at least 0.0667"
    )
    assert check_data(planted(label_fraction=0.0667), "s") == []


def test_reports_folds_that_cannot_be_made(table):
    settings = DataSettings(dataset=str(table()), student=("a",), folds={"scheme": "grouped", "count": 20})
    assert "s.folds.count: 20 grouped folds need at least 20 groups, but there are 12" in texts(
        check_data(settings, "s")
    )
    with pytest.raises(DataError, match=r"data\.folds\.count: 20 grouped folds need"):
        open_fold(settings, 0)


def test_reports_bad_rows_of_every_split(table):
    values = np.arange(36.0, dtype=np.float32).reshape(12, 3)
    values[[1, 11], 0] = np.nan
    path = table({"x_b": pa.array(list(values)), "group": pa.array([0] * 12)})
    found = texts(check_data(DataSettings(dataset=str(path), student=("b",)), "s.toml: data"))
    assert f"{path}: x_b: every value must be finite, but 2 are not, rows 1, 11;" in found
    assert f"{path}: group: a group must be in one split only, group 0 in several" in found


def test_a_fold_holds_the_named_modalities_and_no_test_row():
    settings = planted(privileged=("audio",))
    fold, samples = open_fold(settings, 0), Planted(**SMALL).samples()
    assert fold.test is None
    assert list(fold.train.inputs) == list(fold.validation.inputs) == ["face", "audio"]
    assert fold.train.rows.tolist() == samples.rows[samples.split == "train"].tolist()
    assert fold.validation.labels.tolist() == samples.labels[samples.split == "val"].tolist()
    assert (len(fold.train), len(fold.validation), fold.fold) == (60, 30, 0)
    assert fold.card == samples.card


def test_the_test_part_comes_when_asked_for_and_changes_nothing_else():
    settings = planted()
    without, with_test = open_fold(settings, 0), open_fold(settings, 0, with_test=True)
    assert len(with_test.test) == 30
    assert with_test.fingerprint == without.fingerprint
    np.testing.assert_array_equal(with_test.train.inputs["face"], without.train.inputs["face"])


@pytest.mark.parametrize("scheme", ["official", "stratified", "grouped"])
def test_inputs_are_standardised_with_training_rows_only(scheme):
    fold = open_fold(planted(folds={"scheme": scheme}), 0, with_test=True)
    train = fold.train.inputs["face"]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)
    samples = Planted(**SMALL).samples()
    rows = {row: i for i, row in enumerate(samples.rows)}
    raw = samples.inputs["face"].astype(float)
    seen = raw[[rows[row] for row in fold.train.rows]]
    expected = (raw[[rows[row] for row in fold.test.rows]] - seen.mean(axis=0)) / seen.std(axis=0)
    np.testing.assert_allclose(fold.test.inputs["face"], expected, atol=1e-5)
    assert fold.test.inputs["face"].dtype == np.float32


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_constant_column_becomes_zero(table, constant):
    values = np.full((12, 3), constant, np.float32)
    values[:, 1] = np.arange(12)
    path = table({"x_b": pa.array(list(values))})
    fold = open_fold(DataSettings(dataset=str(path), student=("b",)), 0)
    np.testing.assert_allclose(fold.train.inputs["b"][:, 0], 0, atol=1e-6)
    assert fold.train.inputs["b"][:, 1].std() == pytest.approx(1)


def test_the_fold_kept_for_tuning_has_no_test_rows():
    folds = {"scheme": "stratified", "count": 3, "tuning": "fixed_holdout"}
    data = DataSettings(dataset="planted", student=["face"], folds=folds)
    tuning = open_fold(data, 3)
    assert tuning.test is None
    tested = {row for fold in range(3) for row in open_fold(data, fold, with_test=True).test.rows}
    assert tested.isdisjoint({*tuning.train.rows, *tuning.validation.rows})
    with pytest.raises(ConfigError, match="`fold` must be in 0 to 2 with its test rows, but is 3"):
        open_fold(data, 3, with_test=True)


def test_folds_and_data_have_fingerprints_of_their_own():
    settings = planted(folds={"scheme": "stratified"})
    others = [
        planted(),
        planted(folds={"scheme": "stratified", "seed": 1}),
        planted(options=SMALL | {"seed": 1}),
    ]
    found = [open_fold(settings, 0), open_fold(settings, 1), *(open_fold(other, 0) for other in others)]
    assert len({fold.fingerprint for fold in found}) == 5
    assert open_fold(planted(privileged=("audio",)), 0).fingerprint == open_fold(planted(), 0).fingerprint


def test_a_fold_outside_the_scheme_is_refused():
    with pytest.raises(
        ConfigError, match=r"data\.folds: `fold` must be in 0 to 0, but is 1; choose another fold"
    ):
        open_fold(planted(), 1)


def test_a_caller_cannot_change_what_the_next_one_gets():
    first = open_fold(planted(), 0)
    before = first.train.inputs["face"].copy()
    first.train.inputs["face"][:] = 0
    first.train.labels[:] = 0
    again = open_fold(planted(), 0)
    np.testing.assert_array_equal(again.train.inputs["face"], before)
    assert set(again.train.labels.tolist()) == {0, 1, 2, 3}


def test_a_changed_file_is_read_again(table):
    settings = DataSettings(dataset=str(table()), student=("b",))
    before = open_fold(settings, 0)
    path = table({"x_b": pa.array([[float(i * i), 1.0, 2.0] for i in range(12)], pa.list_(pa.float32()))})
    os.utime(path.parent / "tiny.parquet", ns=(1, 1))
    after = open_fold(settings, 0)
    assert before.fingerprint != after.fingerprint
    assert (before.train.inputs["b"] != after.train.inputs["b"]).any()


def test_search_orders_do_not_read_test_features_of_a_table(table):
    values = np.arange(36.0, dtype=np.float32).reshape(12, 3)
    values[10] = np.nan
    settings = DataSettings(dataset=str(table({"x_b": pa.array(list(values))})), student=("b",))
    assert open_fold(settings, 0).test is None
    with pytest.raises(DataError, match="x_b: every value must be finite, but 3 are not, row 10"):
        open_fold(settings, 0, with_test=True)
