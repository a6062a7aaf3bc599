"""Rows of a small study, and the study itself."""

from datetime import UTC, datetime

import pytest

from mmdistill.records.finals import Final
from mmdistill.records.rows import EpochRow, OpeningRow, PredictionRow, StageRow, StudyRow, TrialRow
from mmdistill.records.study import StudyFolder

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)


def _study_row(**changes):
    values = {
        "name": "tiny",
        "created_at": NOON,
        "dataset": "planted",
        "task": "classification",
        "score": "accuracy",
        "baseline": "student_only",
        "reference": None,
        "margin": 0.005,
        "contrasts_json": "[]",
        "arms_json": "[]",
        "trials": 2,
        "pairs": 2,
        "seed": 7,
        "package_version": "0.1",
        "python": "3.11",
        "torch": "2.13.0",
        "ray": "2.60.0",
        "data_fingerprint": "abc",
        "command": "mmdistill run tiny.toml",
        "host": "here",
        "cpu_count": 2,
        "threads": 1,
    }
    return StudyRow(**{**values, **changes})


def _trial_row(**changes):
    values = {
        "trial_id": "t0",
        "order_id": "o0",
        "arm": "hinton",
        "phase": "search",
        "number": 0,
        "seed": 11,
        "fold": 0,
        "pair_id": "p0",
        "status": "complete",
        "split": "validation",
        "epoch": 3,
        "metrics": {"accuracy": 0.9, "latency_ms": 1.5},
        "parameters": {"optimiser.lr": 0.01},
        "config_json": "{}",
        "run_digest": "d0",
        "dataset": "planted",
        "teachers": ["joint"],
        "selection": {"joint": 1.0},
        "cpu_s": 1.0,
        "stage_cpu_s": 2.0,
        "lanes": 1,
        "device": "cpu",
        "host": "here",
        "started_at": NOON,
        "ended_at": NOON,
    }
    return TrialRow(**{**values, **changes})


def _stage_row(**changes):
    values = {
        "stage_key": "k0",
        "stage": "teacher",
        "name": "joint",
        "seed": 11,
        "fold": 0,
        "pair_id": "p0",
        "order_id": "o0",
        "cache_hit": False,
        "reason": "first use",
        "cpu_s": 2.0,
        "metrics": {},
        "upstream": [],
    }
    return StageRow(**{**values, **changes})


def _opening_row(**changes):
    values = {
        "opening": 1,
        "opened_at": NOON,
        "arm": "hinton",
        "fold": 0,
        "seed_index": 0,
        "trial_id": "t0",
        "selection": "1.json",
        "order_id": "o0",
    }
    return OpeningRow(**{**values, **changes})


def _final(order_id="o0", kind="search", lanes=2, epochs=3, rows=4):
    trials = [
        _trial_row(trial_id=f"{order_id}.{lane}", order_id=order_id, number=lane) for lane in range(lanes)
    ]
    return Final(
        order_id=order_id,
        kind=kind,
        trials=trials,
        stages=[_stage_row(order_id=order_id)],
        epochs=[
            EpochRow(
                trial_id=t.trial_id, arm=t.arm, phase=t.phase, epoch=e, name="term/task", value=1.0 / (e + 1)
            )
            for t in trials
            for e in range(epochs)
        ],
        predictions=[
            PredictionRow(
                trial_id=t.trial_id,
                arm=t.arm,
                pair_id=t.pair_id,
                seed_index=0,
                fold=0,
                row=f"r{n}",
                unit=f"r{n}",
                label=0.0,
                targets=[],
                outputs=[0.25, 0.75],
            )
            for t in trials
            for n in range(rows)
        ],
    )


def run_small_study(root):
    """Do what a driver does, or the rest of it."""
    study = StudyFolder.create(root, _study_row(), "", {"seed": 7})
    study.put_decision("hinton.0", {"parameters": {"lr": 0.1}})
    study.put_selection({"hinton": 0})
    study.put_opening([_opening_row()])
    if "o0" not in study.final_ids():
        attempt = study.begin_attempt("o0")
        study.put_final(_final())
        study.end_attempt("o0", attempt, "complete")


@pytest.fixture(scope="session")
def small_study():
    return run_small_study


@pytest.fixture(scope="session")
def study_row():
    return _study_row


@pytest.fixture(scope="session")
def trial_row():
    return _trial_row


@pytest.fixture(scope="session")
def stage_row():
    return _stage_row


@pytest.fixture(scope="session")
def opening_row():
    return _opening_row


@pytest.fixture(scope="session")
def final():
    return _final


@pytest.fixture
def folder(tmp_path):
    return StudyFolder.create(
        tmp_path / "study", _study_row(), 'name = "tiny"\n', {"name": "tiny", "seed": 7}
    )
