"""One driver per study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmdistill.records.lock import DriverLock

from mmdistill.errors import LockedError
from mmdistill.records import lock

HOLDER = """
import sys, time
from pathlib import Path
from mmdistill.records.lock import DriverLock
with DriverLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
TAKER = """
import sys
from pathlib import Path
from mmdistill.errors import LockedError
from mmdistill.records.lock import DriverLock
for line in sys.stdin:
    try:
        lock = DriverLock(Path(line.strip())).__enter__()
        print("held", flush=True)
    except LockedError:
        print("refused", flush=True)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])}


@pytest.fixture
def holder(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def rewritten(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_live_holder_is_named_at_once(tmp_path, holder):
    since = json.loads((tmp_path / "lock.json").read_text())["started_at"]
    before = time.perf_counter()
    with pytest.raises(LockedError) as caught, DriverLock(tmp_path):
        pass
    assert time.perf_counter() - before < 0.1
    for part in (
        str(tmp_path),
        f"process {holder.pid}",
        os.uname().nodename,
        since,
        "wait for it, or end it",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_holder_is_taken_over(tmp_path, holder, reaped):
    os.kill(holder.pid, signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # Dead, but still listed.
    with DriverLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"boot_id": "another"}, {"process_start": 1}, {"pid": 2**22 + 1}])
def test_a_process_that_only_looks_like_the_holder_does_not_hold_it(tmp_path, changes):
    with DriverLock(tmp_path):
        rewritten(tmp_path / "lock.json", **changes)
        with DriverLock(tmp_path):
            pass


def test_a_holder_on_another_host_is_believed(tmp_path):
    with DriverLock(tmp_path):
        rewritten(tmp_path / "lock.json", host="elsewhere", pid=2**22 + 1)
        message = r"by process \d+ on elsewhere since .*; if that machine is gone, remove .*lock\.json"
        with pytest.raises(LockedError, match=message), DriverLock(tmp_path):
            pass


def test_one_process_does_not_hold_it_twice(tmp_path):
    with (
        DriverLock(tmp_path),
        pytest.raises(LockedError, match=f"process {os.getpid()}"),
        DriverLock(tmp_path),
    ):
        pass


def test_only_our_own_lock_is_released(tmp_path):
    path = tmp_path / "lock.json"
    with DriverLock(tmp_path):
        rewritten(path, host="elsewhere")
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_it_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), DriverLock(tmp_path):
        _ = 1 / 0
    with DriverLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_studies_are_free(tmp_path):
    with DriverLock(tmp_path / "a"), DriverLock(tmp_path / "b"):
        assert (tmp_path / "a" / "lock.json").exists()


def test_a_lock_nobody_can_read_is_named(tmp_path):
    (tmp_path / "lock.json").write_text("{")
    with pytest.raises(LockedError, match=r"lock\.json is not readable; remove it"), DriverLock(tmp_path):
        pass


def test_a_lock_that_changed_hands_while_it_was_judged_stays(tmp_path, monkeypatch):
    path = tmp_path / "lock.json"
    with DriverLock(tmp_path):
        stale = path.read_bytes()
        new = stale + b"\n"
        rename = Path.rename

        def replaced_first(source, target):
            path.write_bytes(new)
            return rename(source, target)

        monkeypatch.setattr(Path, "rename", replaced_first)
        DriverLock(tmp_path)._remove(stale)
        assert path.read_bytes() == new
        monkeypatch.undo()
        path.write_bytes(stale)


def test_of_many_that_take_over_one_lock_one_gets_it(tmp_path):
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(4)
    ]
    with DriverLock(tmp_path):
        stale = (tmp_path / "lock.json").read_text()
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "lock.json").write_text(stale)
        rewritten(folder / "lock.json", process_start=1)
        for taker in takers:
            taker.stdin.write(f"{folder}\n")
        assert sorted(taker.stdout.readline() for taker in takers) == ["held\n", *["refused\n"] * 3]
        assert [path.name for path in folder.iterdir()] == ["lock.json"]
    for taker in takers:
        taker.communicate()
