import json

from mmdistill.records.rows import StudyRow
from mmdistill.records.schema import from_json, to_json
from mmdistill.studies.provenance import installed, study_row


def test_a_study_is_recorded_with_what_it_was_asked_and_with_what(put_together, tiny):
    text = tiny + '\n[[contrasts]]\nquestion = "Why?"\narm = "hinton"\nagainst = "student_only"\n'
    study = put_together(text)
    row = study_row(study, ["mmdistill", "run", "a b.toml"])
    assert (row.name, row.task, row.score, row.baseline) == (
        "tiny",
        "classification",
        "accuracy",
        "student_only",
    )
    assert (row.trials, row.pairs, row.seed, row.margin) == (3, 2, 3, 0.005)
    assert row.command == "mmdistill run 'a b.toml'"
    assert json.loads(row.contrasts_json) == [
        {"question": "Why?", "arm": "hinton", "against": "student_only"}
    ]
    arms = json.loads(row.arms_json)
    assert [(arm["name"], arm["dimensions"]) for arm in arms] == [
        ("student_only", 3),
        ("hinton", 5),
        ("several", 5),
    ]
    assert len({arm["digest"] for arm in arms}) == 3
    assert from_json(StudyRow, to_json(row)) == row


def test_pairs_of_a_study_count_every_fold(put_together, tiny):
    study = put_together(tiny, "run.data.folds.scheme=stratified", "run.data.folds.count=3")
    assert study_row(study, []).pairs == 6
    assert len(set(study.fingerprints)) == 3


def test_what_is_not_installed_is_said_so():
    assert installed("torch").startswith("2.")
    assert installed("no-such-package") == "not installed"
