"""What every registered data set keeps; a new one is found by discovery."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.data import DATASETS, DataSettings, check_data, held_out_folds, labelled_mask, open_fold
from mmdistill.data.samples import check


def write_table(folder):
    generator = np.random.default_rng(0)
    columns = {
        "x_a": pa.array(list(generator.standard_normal((60, 4)).astype(np.float32))),
        "label": pa.array(np.arange(60) % 3),
        "split": pa.array(["train"] * 30 + ["val"] * 15 + ["test"] * 15),
        "group": pa.array(np.arange(60) // 5),
    }
    pq.write_table(pa.table(columns), folder / "tiny.parquet")
    card = {"name": "tiny", "task": "classification", "classes": 3, "modalities": {"a": {"shape": [4]}}}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.fixture(params=DATASETS, scope="module")
def options(request, tmp_path_factory):
    """Return a name and its options; defaults, but a table needs a file."""
    if request.param != "table":
        return request.param, {}
    folder = tmp_path_factory.mktemp("tiny")
    write_table(folder)
    return request.param, {"path": str(folder)}


@pytest.fixture(scope="module")
def dataset(options):
    name, values = options
    return DATASETS[name](**values)


@pytest.fixture(scope="module")
def samples(dataset):
    return dataset.samples()


@pytest.fixture
def settings(options, dataset):
    first, *others = dataset.card().modalities
    return DataSettings(dataset=options[0], options=options[1], student=(first,), privileged=others[:2])


def test_card_and_samples_agree(dataset, samples):
    card = dataset.card()
    assert samples.card == card
    assert set(samples.inputs) == set(card.modalities)
    for name, values in samples.inputs.items():
        assert values.shape == (len(samples), card.width(name))
        assert values.dtype == np.float32
    assert samples.labels.dtype == (np.int64 if card.task == "classification" else np.float32)


def test_rows_are_sound(samples):
    assert check(samples, "here") == []


def test_groups_are_in_one_split_and_no_split_is_empty(samples):
    groups = [set(samples.groups[samples.split == name]) for name in ("train", "val", "test")]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_two_readings_are_equal(dataset, samples):
    again = dataset.samples()
    assert again.fingerprint == samples.fingerprint
    assert len(again.fingerprint) == 16
    for name, values in samples.inputs.items():
        np.testing.assert_array_equal(again.inputs[name], values)
    assert dataset.version() == dataset.version()


def test_test_rows_and_other_modalities_stay_behind_when_not_wanted(dataset, samples):
    name = next(iter(samples.inputs))
    part = dataset.samples(with_test=False, modalities=[name])
    assert list(part.inputs) == [name]
    assert part.rows.tolist() == samples.rows[samples.split != "test"].tolist()
    np.testing.assert_array_equal(part.inputs[name], samples.inputs[name][samples.split != "test"])
    assert part.fingerprint == samples.fingerprint


def test_a_study_over_it_may_start(settings):
    assert check_data(settings, "here") == []


@pytest.mark.parametrize("scheme", ["official", "grouped"])
def test_parts_of_a_fold_are_disjoint_and_cover_the_rows(settings, samples, scheme):
    chosen = settings.model_copy(
        update={"folds": settings.folds.model_copy(update={"scheme": scheme, "count": 3})}
    )
    tested = []
    for fold in range(chosen.fold_count):
        data = open_fold(chosen, fold, with_test=True)
        parts = (data.train, data.validation, data.test)
        names = [row for part in parts for row in part.rows]
        assert sorted(names) == sorted(samples.rows)
        assert sum(len(set(part.groups)) for part in parts) == len(set(samples.groups))
        assert set(data.train.inputs) == set(chosen.modalities)
        tested += data.test.rows.tolist()
    assert len(set(tested)) == len(tested)
    if scheme == "grouped":
        assert len(tested) == len(samples)


def test_labelled_rows_and_inner_folds_can_be_drawn(settings):
    train = open_fold(settings, 0).train
    mask = labelled_mask(train, fraction=0.5, seed=3)
    assert abs(mask.sum() - len(train) / 2) <= 10
    folds = held_out_folds(train, mask, 3, seed=3)
    assert set(folds[mask]) == {0, 1, 2}
    assert set(folds[~mask]) == {-1}


def test_options_are_frozen_and_have_a_digest(dataset):
    assert type(dataset).model_validate(dataset.as_json()).digest == dataset.digest
    assert hash(dataset) == hash(type(dataset).model_validate(dataset.as_json()))
