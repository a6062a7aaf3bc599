"""`mmdistill importance` and `mmdistill compare` on a finished study."""

import shutil


def test_importance_says_what_it_answers_and_why_it_cannot(call, finished):
    answer = call("importance", finished)
    assert answer.code == 0
    text = " ".join(answer.out.split())
    assert text.startswith("- fANOVA (Hutter et al., 2014): the share of the variance of the validation loss")
    assert "student_only: 2 complete trials are too few for 3 hyperparameters (2 for each at least)." in text
    assert "hinton: 2 complete trials are too few for 5 hyperparameters (2 for each at least)." in text


def test_importance_of_one_arm_as_json(call, finished):
    found = call("importance", finished, "--arm", "hinton", "--method", "mdi", "--json").json
    assert found["method"] == "mdi"
    assert found["answers"].startswith("MDI, mean decrease in impurity")
    assert [(one["arm"], one["shares"]) for one in found["arms"]] == [("hinton", [])]


def test_importance_of_an_arm_that_was_not_searched_is_refused(call, finished):
    answer = call("importance", finished, "--arm", "hintn")
    assert answer.code == 2
    assert answer.lines == ["mmdistill: --arm: no searched arm is called 'hintn'; did you mean 'hinton'?"]


def test_compare_prints_arms_by_data_sets(call, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    answer = call("compare", tmp_path, finished)
    assert answer.code == 0
    header, _, *arms = answer.out.splitlines()[:4]
    # Two studies on the same data are one data set.
    assert header.split() == ["arm", "mean", "rank", "planted"]
    assert {arm.split()[0] for arm in arms} == {"student_only", "hinton"}
    assert "- planted is averaged over the runs" not in answer.out
    assert "- No test: 1 data set(s) are too few to compare arms over data sets, which takes 4" in answer.out


def test_compare_as_json(call, finished):
    found = call("compare", finished, "--json").json
    assert found["datasets"] == ["planted"]
    assert found["critical_difference"] is None


def test_compare_of_what_holds_no_study_names_every_path(call, tmp_path):
    answer = call("compare", tmp_path, tmp_path / "absent")
    assert answer.code == 2
    rule = "no study here, nor in a folder directly inside; give studies, or a folder that holds some"
    assert answer.lines == [f"mmdistill: {path}: {rule}" for path in (tmp_path, tmp_path / "absent")]


def test_the_table_as_json_has_the_curves(call, finished):
    found = call("table", finished, "--json").json
    assert [curve["arm"] for curve in found["curves"]["budget"]] == ["student_only", "hinton"]
    assert found["curves"]["exchange"]["curves"] == []
