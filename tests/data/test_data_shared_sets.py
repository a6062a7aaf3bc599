"""Real data sets in the format of a table; they are not part of the repository."""

from pathlib import Path

import numpy as np
import pytest

from mmdistill.data import DataSettings, check_data, held_out_folds, labelled_mask, open_fold
from mmdistill.data.card import read_card

ROOT = Path(__file__).parents[3] / "shared" / "data"
SETS = {
    "mfeat": (("zernike",), ("pixels", "fourier"), (1000, 400, 600)),
    "utd_mhad": (("inertial",), ("skeleton", "depth"), (323, 108, 430)),
    "av_digits": (("audio",), ("image",), (1500, 500, 1000)),
    "ceap_behaviour": (("head",), ("gaze", "stimulus"), (2720, 800, 1600)),
}


@pytest.fixture(params=SETS)
def settings(request):
    folder = ROOT / request.param
    if not (folder / "card.json").exists():
        pytest.skip(f"the data set {request.param} is not in ../shared/data")
    student, privileged, _ = SETS[request.param]
    return DataSettings(dataset=str(folder), student=student, privileged=privileged, label_fraction=0.25)


@pytest.fixture
def sizes(settings):
    return SETS[Path(settings.dataset).name][2]


def test_is_sound_and_as_large_as_its_card_says(settings, sizes):
    assert check_data(settings, "study.toml: data") == []
    fold = open_fold(settings, 0, with_test=True)
    assert (len(fold.train), len(fold.validation), len(fold.test)) == sizes


def test_search_orders_get_standardised_rows_without_test_rows(settings, sizes):
    fold, card = open_fold(settings, 0), read_card(Path(settings.dataset)).card
    assert fold.test is None
    for name in settings.modalities:
        assert fold.train.inputs[name].shape == (sizes[0], card.width(name))
        assert np.isfinite(fold.validation.inputs[name]).all()
        assert abs(fold.train.inputs[name].mean()) < 1e-4
    assert fold.train.labels.shape == (
        (sizes[0],) if card.task == "classification" else (sizes[0], card.outputs)
    )


def test_a_quarter_of_the_labels_and_inner_folds_can_be_drawn(settings, sizes):
    train = open_fold(settings, 0).train
    mask = labelled_mask(train, fraction=0.25, seed=0)
    assert mask.mean() == pytest.approx(0.25, abs=0.02)
    folds = held_out_folds(train, mask, 3, seed=0)
    assert set(folds[mask]) == {0, 1, 2}


def test_grouped_folds_keep_subjects_whole(settings):
    chosen = settings.model_copy(
        update={"folds": settings.folds.model_copy(update={"scheme": "grouped", "count": 3})}
    )
    assert check_data(chosen, "study.toml: data") == []
    fold = open_fold(chosen, 1, with_test=True)
    groups = [set(part.groups) for part in (fold.train, fold.validation, fold.test)]
    assert len(set.union(*groups)) == sum(map(len, groups))
