"""The searches of a study, read back with Optuna itself."""

import dataclasses
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mmdistill.cluster.optuna_export import export_optuna
from mmdistill.errors import InputError
from mmdistill.records.study import StudyFolder
from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

STUDY = {
    "name": "exported",
    "seed": 3,
    "run": {
        "epochs": 3,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [64, 32, 32]},
            "student": ["face"],
            "privileged": ["audio", "decoy"],
            "folds": {"scheme": "stratified", "count": 2},
        },
        "teachers": {"epochs": 2, "out_of_fold": 2},
    },
    "arms": [
        {"name": "student_only", "recipe": "student_only"},
        {
            "name": "any",
            "recipe": "hinton",
            "space": {
                "teachers.pool": {"choice": [["audio"], ["joint"]]},
                "batch_size": {"choice": [16, 32]},
            },
        },
    ],
    "search": {"trials": 3, "startup": 2, "generation": 1, "top": 1, "seeds": 1},
    "confirm": {"pairs": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, begin, finish):
    root = tmp_path_factory.mktemp("exported")
    finish(begin(assemble(StudyFile.model_validate(STUDY), "exported.toml"), root))
    return StudyFolder.open(root)


def rows_of(folder, arm, fold):
    rows = [row for final in folder.finals() for row in final.trials if row.phase == "search"]
    return sorted((r for r in rows if (r.arm, r.fold) == (arm, fold)), key=lambda row: row.number)


def storage_of(file):
    if file.suffix == ".db":
        return f"sqlite:///{file}"
    return JournalStorage(JournalFileBackend(str(file)))


@pytest.mark.parametrize("name", ["new.db", "new.journal"])
def test_optuna_loads_one_study_per_arm_and_fold_with_equal_values(folder, tmp_path, name):
    exported = export_optuna(folder, tmp_path / name)
    names = [f"exported/{arm}/fold{fold}" for arm in ("student_only", "any") for fold in (0, 1)]
    assert sorted(one.name for one in exported) == sorted(names)
    storage = storage_of(tmp_path / name)
    assert sorted(optuna.get_all_study_names(storage)) == sorted(names)
    for study_name in names:
        _, arm, fold = study_name.split("/")
        study = optuna.load_study(study_name=study_name, storage=storage)
        rows = rows_of(folder, arm, int(fold[-1]))
        assert len(rows) == len(study.trials) == 3
        for row, trial in zip(rows, study.trials, strict=True):
            same_trial(folder, row, trial)
        best = min(rows, key=lambda row: row.metrics["log_loss"])
        assert study.best_trial.user_attrs["trial_id"] == best.trial_id


def same_trial(folder, row, trial):
    assert trial.state is TrialState.COMPLETE
    assert trial.value == row.metrics["log_loss"]
    assert trial.user_attrs["accuracy"] == row.metrics["accuracy"]
    assert trial.user_attrs["trial_id"] == row.trial_id
    assert set(trial.params) == set(folder.resolved["arms"][row.arm]["space"])
    for path, value in trial.params.items():
        assert (json.loads(value) if path == "teachers.pool" else value) == row.parameters[path]
    final = folder.final(row.order_id, whole=True)
    curve = {
        e.epoch: e.value
        for e in final.epochs
        if (e.trial_id, e.name) == (row.trial_id, "validation/log_loss")
    }
    assert trial.intermediate_values == pytest.approx(curve)
    assert len(curve) == 3
    assert abs(trial.duration - (row.ended_at - row.started_at)) < timedelta(seconds=1)


def test_domains_are_those_that_were_searched(folder, tmp_path):
    export_optuna(folder, tmp_path / "new.db")
    study = optuna.load_study(study_name="exported/any/fold0", storage=storage_of(tmp_path / "new.db"))
    distributions = study.trials[0].distributions
    assert distributions["teachers.pool"].choices == ('["audio"]', '["joint"]')
    assert distributions["batch_size"].choices == (16, 32)
    rate = folder.resolved["arms"]["any"]["space"]["optimiser.learning_rate"]
    found = distributions["optimiser.learning_rate"]
    assert (found.low, found.high, found.log) == (rate["low"], rate["high"], rate["log"])


def altered(monkeypatch, folder, changes):
    """Let the search trials of the first arm end otherwise, by number."""
    honest = StudyFolder.finals

    def finals(self):
        for final in honest(self):
            trials = [
                dataclasses.replace(row, **changes.get(row.number, {})) if row.phase == "search" else row
                for row in final.trials
            ]
            yield dataclasses.replace(final, trials=trials)

    monkeypatch.setattr(StudyFolder, "finals", finals)


def test_pruned_and_failed_trials_keep_their_state(folder, tmp_path, monkeypatch):
    lost = {"status": "diverged", "metrics": {}, "error": "total is not finite at step 3"}
    altered(monkeypatch, folder, {0: {"status": "pruned", "stopped_epoch": 2}, 1: lost})
    export_optuna(folder, tmp_path / "new.db")
    study = optuna.load_study(
        study_name="exported/student_only/fold0", storage=storage_of(tmp_path / "new.db")
    )
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    assert len(study.trials[0].intermediate_values) == 3
    assert [trial.user_attrs.get("stopped_epoch") for trial in study.trials] == [2, None, None]
    assert study.trials[1].user_attrs["error"] == "total is not finite at step 3"
    assert study.best_trial.number == 2


def test_a_file_that_is_there_stays(folder, tmp_path):
    file = tmp_path / "new.db"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"new\.db: the file exists, and nothing is overwritten"):
        export_optuna(folder, file)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["new.db"]


def test_every_problem_of_a_path_is_told(folder, tmp_path):
    with pytest.raises(InputError) as caught:
        export_optuna(folder, tmp_path / "nowhere" / "new.csv")
    text = str(caught.value)
    assert "the suffix tells the storage (got '.csv'); end it with one of .db, .sqlite" in text
    assert "its folder does not exist; make it, or give another path" in text


def test_a_failed_export_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Study, "add_trials", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_optuna(folder, tmp_path / "new.db")
    assert list(tmp_path.iterdir()) == []


def test_optuna_dashboard_shows_it(folder, tmp_path):
    command = shutil.which("optuna-dashboard", path=str(Path(optuna.__file__).parents[4] / "bin"))
    if command is None:
        pytest.skip("optuna-dashboard is not installed")
    export_optuna(folder, tmp_path / "new.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [command, f"sqlite:///{tmp_path / 'new.db'}", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            summaries = answer(server, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            one = next(s for s in summaries if s["study_name"] == "exported/any/fold1")
            trials = answer(server, f"http://127.0.0.1:{port}/api/studies/{one['study_id']}")["trials"]
        finally:
            server.terminate()
    assert len(summaries) == 4
    assert [trial["state"] for trial in trials] == ["Complete"] * 3
    shown = [trial["values"][0] for trial in trials]
    assert shown == pytest.approx([row.metrics["log_loss"] for row in rows_of(folder, "any", 1)])


def answer(server, url):
    limit = time.monotonic() + 60
    while time.monotonic() < limit and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)
        except OSError:
            time.sleep(0.2)
    return pytest.fail("optuna-dashboard does not answer")
