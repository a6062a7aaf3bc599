"""How a run ends: by a signal, by an error, or before it is finished."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmdistill.cluster import launch as launching
from mmdistill.cluster.environment import VARIABLES
from mmdistill.cluster.launch import Interrupted, launch
from mmdistill.cluster.progress import silent
from mmdistill.cluster.searcher import OrderSearcher, Reduced
from mmdistill.cluster.watchdog import FOLDER
from mmdistill.errors import StudyError
from mmdistill.pipeline.order import Order
from mmdistill.records.finals import Final
from mmdistill.records.study import StudyFolder
from mmdistill.studies.session import GIVEN_UP

ORDER = Order(order_id="search-1", kind="search", title="a: search")
SIGNALLED = """
import signal, sys, time
from mmdistill.cluster.launch import _Signals

with _Signals() as signals:
    if "tune" in sys.argv:
        signal.signal(signal.SIGUSR1, lambda *_: print("Tune is told", flush=True))
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("interrupted", signals.came.is_set(), flush=True)
"""


def signalled(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SIGNALLED, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_first_signal_ends_tune_in_order_and_the_second_everything_at_once():
    with signalled("tune") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "Tune is told\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130


def test_before_tune_runs_a_signal_interrupts():
    with signalled() as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "interrupted True\n"
        assert process.wait(10) == 0


def test_tune_leaves_ctrl_c_to_us():
    assert VARIABLES["TUNE_DISABLE_SIGINT_HANDLER"] == "1"


class FakeSession:
    """A session that is not finished, and what was said to it."""

    is_finished = False

    def __init__(self, root):
        self.folder = StudyFolder(root, revisions=[])
        self.ends = []

    def ready(self, in_flight, most=None):
        return [] if in_flight else [ORDER]

    def ended(self, order, outcome):
        self.ends.append((order.order_id, outcome))
        return GIVEN_UP if outcome == "lost" else outcome


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_cluster", lambda *_: contextlib.nullcontext(Path(tmp_path)))
    return FakeSession(tmp_path)


def test_a_run_that_ends_unfinished_without_a_signal_is_an_error(session, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_run", lambda *_: None)
    with pytest.raises(StudyError, match="before the study was finished; everything finished is on record"):
        launch(session, tmp_path)


def test_a_run_that_ends_after_a_signal_was_interrupted(session, tmp_path, monkeypatch):
    def run(*_):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("whatever comes of it")

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    monkeypatch.setattr(launching, "_run", run)
    with pytest.raises(Interrupted, match="the same command resumes"):
        launch(session, tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_tune_is_given_the_path_of_an_order_that_is_there_while_it_runs(session, tmp_path):
    searcher = OrderSearcher(session, tmp_path / "running", silent)
    config = searcher.suggest("t1")
    (path,) = (tmp_path / "running").iterdir()
    assert config == {"order": str(path)}
    assert Order.model_validate_json(path.read_text()) == ORDER
    searcher.on_trial_complete("t1", {"outcome": "complete"})
    assert not path.exists()


def test_tune_keeps_no_statistics_of_times_and_counters():
    result = {"outcome": "complete", "value": 0.0, "time_total_s": 1.0, "config": {"order": "somewhere"}}
    Reduced().on_trial_result(1, [], None, result)
    assert result == {"outcome": "complete", "value": 0.0}


def test_what_goes_wrong_in_the_session_is_kept_for_the_driver(session, tmp_path):
    searcher = OrderSearcher(session, tmp_path, silent)
    assert searcher.suggest("t1")
    assert searcher.suggest("t2") is None
    session.ended = lambda *_: (_ for _ in ()).throw(StudyError("the disk is full"))
    with pytest.raises(StudyError, match="the disk is full"):
        searcher.on_trial_complete("t1", {"outcome": "complete"})
    assert str(searcher.failure) == "the disk is full"


def test_an_order_whose_process_died_is_handed_out_again_and_in_the_end_given_up(session, tmp_path):
    heard = []
    searcher = OrderSearcher(session, tmp_path, heard.append)
    for trial in ("t1", "t2", "t3"):
        assert session.ends == heard == []
        assert isinstance(searcher.suggest(trial), dict)
        searcher.on_trial_complete(trial, error=True)
    assert session.ends == [("search-1", "lost")]
    assert [(event.order, event.outcome) for event in heard] == [(ORDER, GIVEN_UP)]


def test_an_order_whose_process_died_after_its_result_is_done(session, tmp_path):
    searcher = OrderSearcher(session, tmp_path, silent)
    searcher.suggest("t1")
    session.folder.put_final(Final("search-1", "search"))
    searcher.on_trial_complete("t1", error=True)
    assert session.ends == [("search-1", "there already")]


def test_an_order_that_hung_names_its_dump(session, tmp_path):
    searcher = OrderSearcher(session, tmp_path, silent)
    searcher.suggest("t1")
    session.folder.begin_attempt("search-1")
    dumps = session.folder.root / FOLDER
    dumps.mkdir()
    (dumps / "search-1.here.1.txt").write_text("Timeout!\n")
    searcher.on_trial_complete("t1", error=True)
    (attempt,) = session.folder.attempts()
    assert attempt.outcome == "hung"
    assert "dumps/search-1.here.1.txt" in attempt.error
