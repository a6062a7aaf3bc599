"""Where a number comes from: the runs behind a cell, and what is not behind it."""

import dataclasses
import json

import pyarrow as pa
import pytest

from mmdistill.errors import UnknownNameError
from mmdistill.records.finals import Final
from mmdistill.records.study import StudyFolder
from mmdistill.reports.why import made_with, runs_behind, why


@pytest.fixture
def root(made, tmp_path):
    """A study in which one reading of hinton failed and one search trial diverged."""
    configs = {
        arm: json.dumps({"epochs": 4, "seed": 1, "fold": 0, "terms": {arm: {"weight": 2.0}}, "options": {}})
        for arm in ("student_only", "self_distillation", "hinton")
    }
    made.trials = [
        dataclasses.replace(run, config_json=configs[run.arm], parameters={"terms.hinton.weight": 2.0})
        for run in made.trials
    ]
    failed = next(n for n, run in enumerate(made.trials) if run.trial_id == "hinton-test-3-0")
    made.trials[failed] = dataclasses.replace(
        made.trials[failed], status="failed", error="its process died", metrics={}
    )
    folder = StudyFolder.create(tmp_path / "study", made.study, "", {})
    folder.put_final(Final("all", "test", trials=made.trials, predictions=made.predictions))
    for order_id in {row.order_id for row in made.openings}:
        folder.put_opening([row for row in made.openings if row.order_id == order_id])
    return folder.root


def test_the_runs_behind_a_cell_average_to_it(root):
    found = why(root, "hinton")
    assert len(found.runs) == found.interval.n == 9
    assert sum(run.value for run in found.runs) / 9 == pytest.approx(found.interval.mean)
    assert {run.opening for run in found.runs} == {1}
    assert [run.trial_id for run in found.runs] == runs_behind(root, "hinton")
    assert found.rerun == f"mmdistill rerun {root} --arm hinton"


def test_the_name_of_a_merged_arm_leads_to_the_one_it_was_merged_into(made, tmp_path):
    arms = json.loads(made.study.arms_json)
    arms[2]["note"] = "also student_only@label_fraction=1, other"
    folder = StudyFolder.create(
        tmp_path / "study", dataclasses.replace(made.study, arms_json=json.dumps(arms)), "", {}
    )
    folder.put_final(Final("all", "test", trials=made.trials, predictions=made.predictions))
    for name in ("student_only@label_fraction=1", "other"):
        found = why(folder.root, name)
        assert found == why(folder.root, "hinton")
        assert (found.arm, found.aliases) == ("hinton", ("student_only@label_fraction=1", "other"))
        assert runs_behind(folder.root, name) == [run.trial_id for run in found.runs]
    with pytest.raises(UnknownNameError, match="did you mean 'student_only@label_fraction=1'"):
        why(folder.root, "student_only@label_fraction=2")


def test_what_is_left_out_is_listed_with_its_reason(root):
    found = why(root, "hinton")
    assert [(one.trial_id, one.reason) for one in found.excluded] == [("hinton-test-3-0", "its process died")]
    assert found.missing == ("f0-s3 (failed)",)
    assert why(root, "student_only").excluded == ()


def test_settings_are_those_all_runs_share(root):
    found = why(root, "hinton")
    assert found.settings == {"epochs": 4, "terms.hinton.weight": 2.0, "options": {}}
    assert found.parameters == {"all folds": {"terms.hinton.weight": 2.0}}
    assert found.provenance["data_fingerprint"] == "0" * 16


def test_attempts_of_a_version_without_columns_for_the_code_tell_nothing(made):
    made.add_attempt("test-0-0", 5)
    columns = ["git_commit", "git_dirty", "package_version", "python", "torch"]
    attempts = made.tables()["attempts"].drop_columns(columns)
    assert made_with(attempts, [run.__dict__ for run in made.trials]) == {}


def test_code_that_differed_between_the_runs_is_listed(root):
    folder = StudyFolder.open(root)
    assert why(root, "hinton").provenance["torch"] == folder.row.torch
    rows = [{"order_id": "all", "attempt": n, "torch": f"2.{n}", "git_commit": None} for n in (1, 2)]
    rows += [{"order_id": "other", "attempt": 1, "torch": "1.0", "git_commit": None}]
    rows = [{"package_version": "1", "git_dirty": False, "python": "3.11"} | row for row in rows]
    behind = [{"order_id": "all"}, {"order_id": "other"}]
    found = made_with(pa.Table.from_pylist(rows), behind)
    assert found == {"torch": ["1.0", "2.2"], "package_version": "1", "git_dirty": False, "python": "3.11"}


def test_another_metric_of_the_same_runs(root):
    found = why(root, "hinton", "log_loss")
    assert found.interval.mean == pytest.approx(0.5)
    assert {run.value for run in found.runs} == {0.5}


def test_unknown_names_are_told_at_once(root):
    with pytest.raises(UnknownNameError) as error:
        why(root, "hintom", "log_los")
    assert [str(problem) for problem in error.value.problems] == [
        "--metric: no metric is called 'log_los'; did you mean 'log_loss'?",
        "--arm: no arm is called 'hintom'; did you mean 'hinton'?",
    ]


def test_before_the_repetitions_the_best_trial_is_behind_the_cell(new_study, tmp_path):
    study = new_study(["student_only"])
    study.add_search("student_only", [0.9, 0.7, 0.8])
    folder = StudyFolder.create(tmp_path / "study", study.study, "", {})
    folder.put_final(Final("all", "search", trials=study.trials))
    found = why(folder.root, "student_only")
    assert (found.basis, found.proposals) == ("search", (1,))
    assert {one.reason for one in found.excluded} == {"another trial of the search was better"}
