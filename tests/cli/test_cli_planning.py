import re
from collections import Counter

import pytest

from mmdistill.records.study import StudyFolder
from mmdistill.studies.rehearsal import rehearse
from mmdistill.studies.study import open_study


@pytest.fixture
def file(finished):
    return finished.parent / "tiny.toml"


def planned(call, file, *arguments):
    answer = call("plan", file, *arguments, "--json")
    assert answer.code == 0, answer.err
    return answer.json


def test_a_rehearsal_asks_for_exactly_the_orders_of_a_run(file, finished):
    orders = Counter(order.kind for wave in rehearse(open_study(file)) for order in wave)
    assert orders == Counter(final.kind for final in StudyFolder.open(finished).finals())


def test_a_new_study_is_priced_from_its_finished_sibling(call, file, finished):
    found = planned(call, file, "--output", finished.parent / "new", "--no-pilot")
    assert found["cost"]["recorded"] == 1
    assert found["cost"]["unknown"] == 0
    attempts = StudyFolder.open(finished).attempts()
    assert found["cost"]["cpu_s"] == pytest.approx(sum(row.cpu_s for row in attempts), rel=0.02)
    assert found["cost"]["wall_s"] > 0
    assert sum(phase["cpu_s"] for phase in found["phases"]) == pytest.approx(found["cost"]["cpu_s"])
    assert not (finished.parent / "new").exists()


def test_runs_stages_and_teachers_are_counted(call, file, tmp_path):
    found = planned(call, file, "--output", tmp_path / "out" / "new", "--no-pilot")
    assert [(arm["name"], arm["trials"]) for arm in found["arms"]] == [("student_only", 2), ("hinton", 2)]
    assert found["arms"][1]["runs"] == {"search": 2, "validate": 1, "confirm": 2, "test": 2}
    counts = [(p["phase"], p["runs"], p["stages"], p["stages_there"]) for p in found["phases"]]
    assert counts == [("search", 4, 2, 0), ("validate", 2, 2, 0), ("confirm", 4, 4, 0), ("test", 4, 0, 0)]
    # One search seed, one validation seed, two pairs; alone every run of the arm had its own.
    assert (found["trainings"], found["trainings_alone"]) == (4, 5)
    assert found["cost"]["unknown"] == 4 + 2 + 4 + 4 + 2 + 2 + 4
    assert found["cost"]["wall_s"] is None


def test_of_a_finished_study_nothing_is_left(call, file, finished):
    before = sorted(finished.rglob("*"))
    found = planned(call, file, "--output", finished)
    assert [phase["orders"] for phase in found["phases"]] == [0, 0, 0, 0]
    assert [phase["runs"] == phase["runs_recorded"] for phase in found["phases"]] == [True] * 4
    assert (found["trainings"], found["trainings_alone"]) == (4, 5)
    assert found["cost"]["cpu_s"] == 0
    assert sorted(finished.rglob("*")) == before
    assert "Nothing is left to run." in call("plan", file, "--output", finished).out


def test_a_plan_says_how_many_runs_train_together_and_why(call, file, tmp_path, monkeypatch):
    monkeypatch.setattr("mmdistill.studies.lanes.best_lanes", lambda *_: 4)
    monkeypatch.setattr("mmdistill.studies.plan.pilot", lambda *_: {})
    auto = (file, "resources.lanes=auto", "--output", tmp_path / "out" / "new")
    assert planned(call, *auto)["lanes"] == {"number": 4, "source": "measured"}
    assert planned(call, *auto, "--no-pilot")["lanes"] == {"number": 16, "source": "assumed"}
    assert planned(call, file, "--no-pilot")["lanes"] == {"number": 16, "source": "given"}
    said = " ".join(call("plan", *auto, "--no-pilot").out.split())
    assert "up to 16 runs train together, assumed, since nothing may be timed; `run` measures it." in said
    assert "resources.lanes" not in call("plan", file, "--no-pilot").out


def test_stages_in_a_shared_cache_are_there(call, file, finished):
    folder = ("--output", finished.parent / "new", "--cache", finished / "cache", "--no-pilot")
    found = planned(call, file, *folder)
    assert [phase["stages_there"] for phase in found["phases"]] == [2, 2, 4, 0]


def test_a_pilot_prices_what_was_never_timed(call, file, tmp_path):
    found = planned(call, file, "--output", tmp_path / "out" / "new")
    assert found["cost"]["unknown"] == 0
    assert found["cost"]["recorded"] == 0
    assert 0 < found["cost"]["cpu_s"] < 60


def test_too_few_pairs_promise_nothing(call, file, tmp_path):
    text = call("plan", file, "--output", tmp_path / "new", "--no-pilot").out
    assert "unplanned" not in text
    assert "No significance can be promised: n = 2 is too small: the exact sign-flip test of 1" in text
    assert re.search(r"Teachers: 4 trainings with their out-of-fold copies, 5 if every run", text)
    assert "Not in it: 22 runs and stages that were never timed on this machine." in text
    assert re.search(
        r"^hinton +hinton +2 +5 +2 +1 +2 +2 +- +softened_logits.temperature, ", text, re.MULTILINE
    )


def test_enough_pairs_have_a_detectable_difference(call, file, finished):
    folder = ("--output", finished.parent / "new", "--no-pilot")
    (power,) = planned(call, file, "confirm.pairs=10", *folder)["power"]
    assert (power["replicate"], power["n"], power["family"]) == ("seeds", 10, 1)
    assert power["in_sd"] == pytest.approx(0.996, abs=0.002)
    # Its sibling has two pairs, which tell no spread.
    assert power["spread"] is None
    assert (
        "no earlier study of this data set tells that sd"
        in call("plan", file, "confirm.pairs=10", *folder).out
    )


@pytest.mark.parametrize("command", ["plan", "forecast"])
def test_every_problem_of_a_file_is_one_line(call, study_file, command):
    study_file.write_text(study_file.read_text().replace('"hinton"', '"hintn"'))
    answer = call(command, study_file)
    assert answer.code == 2
    assert Counter(line.startswith(f"mmdistill: {study_file}: ") for line in answer.lines)[True] >= 1
    assert "did you mean 'hinton'?" in answer.err


def test_a_forecast_is_a_table_and_a_sentence(call, study_file):
    edits = ["run.data.options.rows=[200, 24, 24]", "run.data.options.redundant=0.0"]
    edits += ["run.data.options.privileged_only=0.0", "run.teachers.epochs=5", "run.data.label_fraction=0.5"]
    text = call("forecast", study_file, *edits).out
    assert re.search(r"^face +audio +50% +100 ", text, re.MULTILINE)
    flat = " ".join(text.split())
    assert (
        "face from audio at 50% of the labels: beyond the label there is nothing the student's modalities "
        "can predict: only label supply can transfer." in flat
    )
    assert "50% of the training rows have no label" in flat
    assert "label supply: the share of the training rows without a label, times what the teacher" in flat
    (one,) = call("forecast", study_file, *edits, "--json").json["forecasts"]
    assert one["labelled"] == 100
    assert one["beyond_label"] <= 0


def test_without_privileged_modalities_there_is_nothing_to_forecast(call, study_file):
    text = study_file.read_text().replace('privileged = ["audio"]\n', "")
    arm = '[[arms]]\nname = "hinton"\nrecipe = "hinton"\n'
    study_file.write_text(text.replace(arm, "").partition("[[contrasts]]")[0])
    answer = call("forecast", study_file)
    assert answer.code == 2
    assert answer.lines == [
        f"mmdistill: {study_file}: run.data.privileged: no arm has privileged modalities, "
        "so there is nothing to forecast; name some"
    ]


def test_a_plan_as_json_lists_every_setting_with_its_default(call, file, tmp_path):
    edits = ("search.startup=1", "run.batch_size=8")
    found = planned(call, file, *edits, "--output", tmp_path / "new", "--no-pilot")["settings"]
    assert (found["search"]["startup"], found["search"]["sampler"], found["margin"]) == (1, "tpe", 0.005)
    assert found["resources"]["workers"] == 0
    assert set(found["arms"]) == {"student_only", "hinton"}
    run = found["arms"]["hinton"]["run"]
    assert (run["batch_size"], run["selection"]["policy"]) == (8, "sample")
    assert run["terms"]["softened_logits"]["weight"] > 0
    assert "terms.softened_logits.weight" in found["arms"]["hinton"]["space"]
