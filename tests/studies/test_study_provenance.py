import json
import os

import numpy as np

from mmdistill.records.rows import StudyRow
from mmdistill.records.schema import from_json, to_json
from mmdistill.studies.provenance import hardware, installed, study_row


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
