"""Orders that hang, in processes of their own: the watchdog ends the process it watches."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdistill.cluster.watchdog import Watchdog, note_hung, open_attempt, remove_unused
from mmdistill.records.study import StudyFolder

WATCHED = """
import sys, time, ctypes
from pathlib import Path
from types import SimpleNamespace
from mmdistill.cluster.watchdog import Watchdog

def stuck():
    {body}

with Watchdog(SimpleNamespace(root=Path(sys.argv[1])), "search-1", 1.0) as watchdog:
    print("begun", flush=True)
    stuck()
print("ended")
"""
# While one thread holds the GIL no Python code runs: neither a thread nor a signal handler of ours.
HOLDS_THE_GIL = "ctypes.PyDLL(None).sleep(60)"
BEATS = "[(time.sleep(0.2), watchdog.beat()) for _ in range(15)]"


def watched(folder, body):
    command = [sys.executable, "-c", WATCHED.format(body=body), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture
def folder(tmp_path):
    """A study folder, as far as attempts need one."""
    return StudyFolder(tmp_path, revisions=[])


@pytest.mark.parametrize("body", ["time.sleep(60)", HOLDS_THE_GIL])
def test_a_process_that_takes_no_step_is_dumped_and_ended(folder, body):
    number = folder.begin_attempt("search-1")
    assert not note_hung(folder, "search-1")
    done = watched(folder.root, body)
    assert (done.returncode, done.stdout) == (1, "begun\n")
    (dump,) = (folder.root / "dumps").iterdir()
    assert "stuck" in dump.read_text()
    assert note_hung(folder, "search-1")
    (attempt,) = folder.attempts()
    assert (attempt.attempt, attempt.outcome) == (number, "hung")
    assert f"see dumps/{dump.name} in the study's folder" in attempt.error
    # What has an end keeps it, and a later attempt is not blamed for an earlier dump.
    assert not note_hung(folder, "search-1")
    folder.begin_attempt("search-1")
    assert not note_hung(folder, "search-1")
    remove_unused(folder)
    assert dump.exists()


def test_steps_keep_a_process_alive_and_leave_nothing(folder):
    done = watched(folder.root, BEATS)
    assert done.stdout == "begun\nended\n", done.stderr
    remove_unused(folder)
    assert not (folder.root / "dumps").exists()


def test_the_file_of_a_killed_process_is_no_dump(folder):
    folder.begin_attempt("search-1")
    watched(folder.root, "import os; os.kill(os.getpid(), 9)")
    assert len(list((folder.root / "dumps").iterdir())) == 1
    assert not note_hung(folder, "search-1")
    remove_unused(folder)
    assert not (folder.root / "dumps").exists()


def test_nothing_is_open_once_an_attempt_has_an_end(folder):
    assert open_attempt(folder, "search-1") is None
    number = folder.begin_attempt("search-1")
    assert open_attempt(folder, "search-1").attempt == number
    folder.end_attempt("search-1", number, "failed", "no")
    assert open_attempt(folder, "search-1") is None


def test_beats_are_cheap(folder):
    with Watchdog(folder, "search-1", 300) as watchdog:
        start = time.process_time()
        for _ in range(10_000):
            watchdog.beat()
        spent = time.process_time() - start
    assert spent / 10_000 < 50e-6
    assert list(Path(folder.root / "dumps").iterdir()) == []


def test_an_attempt_of_another_process_is_seen_after_the_folder_was_listed(folder):
    assert folder.attempts() == []
    number = StudyFolder(folder.root, revisions=[]).begin_attempt("search-1")
    assert open_attempt(folder, "search-1").attempt == number
