"""A study that is extended: computed for real in this process, once in two steps and once at once."""

import dataclasses
import json

import pytest

from mmdistill.cluster.proposals import propose
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.records.rows import TrialRow
from mmdistill.records.store import file_names
from mmdistill.records.study import StudyFolder
from mmdistill.settings import merged
from mmdistill.studies.file import StudyFile
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import Session
from mmdistill.studies.study import assemble
from mmdistill.training.runtime import LocalRuntime

ARMS = [
    {"name": "student_only", "recipe": "student_only"},
    {"name": "hinton", "recipe": "hinton"},
]
# It searches a setting that no arm before it had.
ADDED = {"name": "pkdot", "recipe": "pkdot", "edits": {"terms.transport.k": 5}}
TINY = {
    "name": "tiny",
    "seed": 3,
    "run": {
        "epochs": 2,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [64, 32, 32]},
            "student": ["face"],
            "privileged": ["audio"],
        },
        "teachers": {"epochs": 2, "out_of_fold": 2},
    },
    "search": {"trials": 3, "startup": 2, "generation": 1, "top": 1, "seeds": 1},
}


def begun(root, arms, pairs, revisions=()):
    """Return a session of the study with some arms and pairs in a folder, whatever it was before."""
    tree = merged(TINY, {"arms": arms, "confirm": {"pairs": pairs}})
    study = assemble(StudyFile.model_validate(tree), "tiny.toml")
    row = study_row(study, ["mmdistill", "run"])
    declared = [arm | {"revision": dict(revisions).get(arm["name"], 1)} for arm in json.loads(row.arms_json)]
    row = dataclasses.replace(row, arms_json=json.dumps(declared))
    there = (root / "study.json").exists()
    folder = StudyFolder.open(root) if there else StudyFolder.create(root, row, "", study.resolved())
    session = Session(study, folder, propose)
    session.protocol = type(session.protocol)(study, propose, dict(revisions))
    return session


def results(root):
    """Return what every run gave, without what names the order that computed it and what it took."""
    rows = [row for final in StudyFolder.open(root).finals() for row in final.trials]
    varying = {"order_id", "metrics", *TrialRow.varying}
    kept = [field.name for field in dataclasses.fields(TrialRow) if field.name not in varying]
    return {
        row.trial_id: {name: getattr(row, name) for name in kept}
        | {"metrics": {name: value for name, value in row.metrics.items() if "latency" not in name}}
        for row in rows
    }


@pytest.fixture(scope="module")
def twice(finish, tmp_path_factory):
    """Return a folder whose study was extended by an arm and two pairs, and its results of before."""
    root = tmp_path_factory.mktemp("extended") / "study"
    finish(begun(root, ARMS, 2))
    before = results(root)
    finish(begun(root, [*ARMS, ADDED], 4, {"pkdot": 2}))
    return root, before


def test_an_extension_leaves_every_result_as_it_was(twice):
    root, before = twice
    after = results(root)
    assert {name: after[name] for name in before} == before
    new = [row for name, row in after.items() if name not in before]
    assert {row["phase"] for row in new if row["arm"] != "pkdot"} == {"confirm", "test"}
    assert {row["seed_index"] for row in new if row["arm"] != "pkdot"} == {2, 3}
    assert {row["seed_index"] for row in new if (row["arm"], row["phase"]) == ("pkdot", "test")} == {
        0,
        1,
        2,
        3,
    }


def test_the_ledger_numbers_what_each_selection_opened(twice):
    folder = StudyFolder.open(twice[0])
    assert file_names(folder.root / "selection") == ["1.json", "2.json"]
    for row in folder.openings():
        number = 2 if row.arm == "pkdot" or row.seed_index >= 2 else 1
        assert (row.opening, row.selection) == (number, f"{number}.json")
    assert len(folder.openings()) == 3 * 4
    assert [selection["pairs"] for selection in folder.selections()] == [2, 4]


def test_begun_at_once_the_arms_that_were_there_have_the_same_numbers(finish, twice, tmp_path):
    finish(begun(tmp_path, [*ARMS, ADDED], 4, {"pkdot": 2}))
    whole, extended = results(tmp_path), results(twice[0])
    assert set(whole) == set(extended)
    for name, row in whole.items():
        other = extended[name]
        assert other["parameters"] == row["parameters"]
        # How many train together may change the last bits.
        assert other["metrics"] == pytest.approx(row["metrics"], rel=1e-3, abs=1e-3)


def test_nothing_is_left_after_an_extension(twice):
    session = begun(twice[0], [*ARMS, ADDED], 4, {"pkdot": 2})
    assert session.is_finished
    assert session.ready(()) == []
    assert session.blocks == [2, 2]


def test_a_test_order_is_refused_until_its_look_is_in_the_ledger(tmp_path):
    session = begun(tmp_path / "study", ARMS, 2)
    cache = StageCache(tmp_path / "cache")
    while not (orders := session.ready((), most=1)) or orders[0].kind != "test":
        session.ended(orders[0], run_order(orders[0], session.folder, cache, LocalRuntime()))
    (tmp_path / "study" / "openings").rename(tmp_path / "elsewhere")
    folder = StudyFolder.open(tmp_path / "study")
    assert run_order(orders[0], folder, cache, LocalRuntime()) == "failed"
    (attempt,) = (a for a in folder.attempts() if a.order_id == orders[0].order_id)
    assert "its look at the test rows is not in the ledger of openings" in attempt.error
    assert not folder.has_final(orders[0].order_id)
