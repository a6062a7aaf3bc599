"""No test row reaches a network before the selection is on record."""

import dataclasses

import numpy as np
import pytest

from mmdistill.data import opening
from mmdistill.data.datasets.planted import Planted
from mmdistill.data.folds import FoldSettings, parts_of
from mmdistill.models.network import Network
from mmdistill.pipeline import fold
from mmdistill.settings import merged
from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

MARK = 1e6
TINY = {
    "name": "canary",
    "run": {
        "epochs": 1,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [64, 32, 32]},
            "student": ["face"],
            "privileged": ["audio"],
        },
        "teachers": {"epochs": 1, "out_of_fold": 2},
    },
    "arms": [
        {"name": "student_only", "recipe": "student_only"},
        {"name": "hinton", "recipe": "hinton"},
    ],
    "search": {"trials": 2, "startup": 1, "generation": 1, "top": 1, "seeds": 1},
    "confirm": {"pairs": 2},
}


def forget():
    """Forget opened data: marked rows are for these tests only."""
    opening._loaded.cache_clear()
    fold.opened.cache_clear()


@pytest.fixture(params=[{}, {"scheme": "stratified", "count": 3, "tuning": "fixed_holdout"}])
def folds(request):
    return FoldSettings(**request.param)


@pytest.fixture
def marked(monkeypatch, folds):
    """Mark every row that some fold tests."""
    honest = Planted.samples

    def samples(self, **asked):
        found = honest(self, **asked)
        is_test_N = parts_of(found, folds, folds.count) == "" if folds.has_holdout else found.split == "test"
        inputs = {name: np.where(is_test_N[:, None], np.float32(MARK), x) for name, x in found.inputs.items()}
        return dataclasses.replace(found, inputs=inputs)

    forget()
    monkeypatch.setattr(Planted, "samples", samples)
    yield
    forget()


@pytest.fixture
def watched(monkeypatch, marked):
    """Return how many test rows each network was shown, with whether there was a selection then."""
    seen, folders = [], []
    forward = Network.forward

    def watching(self, inputs, *rest, **more):
        rows = sum(int((x.abs() > MARK / 10).any(dim=-1).sum()) for x in inputs.values())
        seen.append((rows, bool(folders[0].selections())))
        return forward(self, inputs, *rest, **more)

    monkeypatch.setattr(Network, "forward", watching)
    return seen, folders


def test_no_test_row_is_seen_before_the_selection(begin, finish, watched, tmp_path, folds):
    seen, folders = watched
    tree = merged(TINY, {"run": {"data": {"folds": folds.as_json()}}})
    session = begin(assemble(StudyFile.model_validate(tree), "canary.toml"), tmp_path)
    folders.append(session.folder)
    finish(session)
    before = [rows for rows, is_selected in seen if not is_selected]
    assert len(before) > 10
    assert not any(before)
    if not folds.has_holdout:
        # The mark shows where test rows are read; where all of a part is marked, scaling takes it away.
        assert any(rows for rows, is_selected in seen if is_selected)
    assert all(opening.selection == "1.json" for opening in folders[0].openings())
