import json
import os

import numpy as np
import pytest

from mmdistill.errors import ConfigError
from mmdistill.records.code import installed
from mmdistill.records.revisions import normal, refusals
from mmdistill.records.rows import StudyRow
from mmdistill.records.schema import from_json, to_json
from mmdistill.reports.arms import declared_arms
from mmdistill.reports.lattices import games_of
from mmdistill.studies.provenance import hardware, study_row


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


PRICED = """
name = "priced"
prices = { audio = 300, decoy = 20.5 }
price_unit = "EUR"

[run.data]
dataset = "planted"
options = { rows = [64, 32, 32] }
student = ["face"]
privileged = ["audio", "decoy"]

[[arms]]
name = "student_only"
recipe = "student_only"

[[arms]]
name = "hinton"
recipe = "hinton"
controls = ["same_modality"]

[[designs]]
kind = "teacher_subsets"
base = "hinton"
readings = ["retuned", "frozen"]

[[arms]]
name = "several"
recipe = "hinton"
edits = { "teachers.pool" = ["each", "joint"] }

[[designs]]
kind = "network_subsets"
base = "several"
keep = ["joint"]
sizes = [0, 1, 2]

[[arms]]
name = "searched"
recipe = "hinton"
space = { "teachers.pool" = { choice = [["joint"], ["audio"]] } }
"""


def test_arms_say_what_their_teachers_see_and_which_differ_in_these_alone(put_together):
    study = put_together(PRICED)
    row = study_row(study, [])
    arms = {arm["name"]: arm for arm in json.loads(row.arms_json)}
    assert (arms["hinton"]["privileged"], arms["hinton"]["teachers"]) == (["audio", "decoy"], ["joint"])
    assert (arms["student_only"]["privileged"], arms["student_only"]["teachers"]) == ([], [])
    assert arms["searched"]["alike"] is None
    # The largest arm of the second lattice has all networks; hinton itself is the one that has joint alone.
    found = {
        (game.kind, game.full, game.beside, game.frozen): game.arms
        for game in games_of(declared_arms(vars(row), []))
    }
    assert found == {
        ("privileged", "hinton", (), None): {
            frozenset(): "student_only",
            frozenset({"audio"}): "hinton@audio",
            frozenset({"decoy"}): "hinton@decoy",
            frozenset({"audio", "decoy"}): "hinton",
        },
        ("privileged", "hinton", (), "hinton"): {
            frozenset(): "student_only",
            frozenset({"audio"}): "hinton@audio.frozen",
            frozenset({"decoy"}): "hinton@decoy.frozen",
            frozenset({"audio", "decoy"}): "hinton",
        },
        ("teachers", "several", ("joint",), None): {
            frozenset(): "hinton",
            frozenset({"audio"}): "several@networks=audio+joint",
            frozenset({"decoy"}): "several@networks=decoy+joint",
            frozenset({"audio", "decoy"}): "several",
        },
    }


def test_stated_prices_are_on_record_and_change_no_result(put_together):
    study, dearer = put_together(PRICED), put_together(PRICED, "prices.audio=400")
    arms = json.loads(study_row(study, []).arms_json)
    assert {arm["price_unit"] for arm in arms} == {"EUR"}
    assert all(arm["prices"] == {"audio": 300.0, "decoy": 20.5} for arm in arms)
    old, new = normal(study.resolved()), normal(dearer.resolved())
    assert old != new
    assert refusals("study.json", old, new, begun=True, opened=["hinton"]) == []
    assert (
        "prices" not in put_together(PRICED.replace("prices =", "# ").replace("price_unit", "# ")).resolved()
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            "prices.adio=3",
            r"s\.toml: prices\.adio: no privileged modality is called 'adio'; did you mean 'audio'\?",
        ),
        ("prices.audio=0", r"prices\.audio: Input should be greater than 0 \(got 0\)"),
        ("prices.audio='3'", r"prices\.audio: Input should be a valid number \(got '3'\)"),
        ("prices.face=3", r"prices\.face: no privileged modality is called 'face'; known: audio, decoy"),
    ],
)
def test_a_price_that_means_nothing_is_refused(put_together, edit, message):
    with pytest.raises(ConfigError, match=message):
        put_together(PRICED, edit)


def test_libraries_machine_and_environment_are_recorded_without_secrets(put_together, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t-Value_42")
    monkeypatch.setenv("MMDISTILL_STORE", "https://me:s3cr3t-Value_42@host/x")
    monkeypatch.setenv("HOME_MADE", "not asked for")
    row = study_row(put_together(), ["mmdistill", "run", "x.toml", "--token", "s3cr3t-Value_42"])
    versions = json.loads(row.versions_json)
    assert {"torch", "numpy", "scipy", "POT", "numba", "optuna", "pyarrow", "duckdb", "pydantic"} <= set(
        versions
    )
    assert versions["numpy"] == np.__version__
    machine = json.loads(row.hardware_json)
    assert machine["cpu"]
    assert machine["cores"] == os.cpu_count()
    assert machine["memory_bytes"] > 1e8
    assert isinstance(machine["gpus"], list)
    found = json.loads(row.environment_json)
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["RAY_AUTH_TOKEN"] == "***"
    assert found["MMDISTILL_STORE"] == "https://***@host/x"
    assert "HOME_MADE" not in found
    assert row.command == "mmdistill run x.toml --token ***"
    assert {"versions_json", "hardware_json", "environment_json"} <= set(StudyRow.varying)


def test_the_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert hardware()["gpus"] == ["NVIDIA H200"] * 2
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware()["gpus"] == []
