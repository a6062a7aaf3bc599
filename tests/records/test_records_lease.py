"""One driver per study, and what becomes of one that was overtaken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdistill.errors import LockedError, StudyError
from mmdistill.records import lease
from mmdistill.records.lease import Lease, require_free
from mmdistill.records.sealed import seal, unseal

HOLDER = """
import sys, time
from pathlib import Path
from mmdistill.records.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
TAKER = """
import sys
from pathlib import Path
from mmdistill.errors import LockedError
from mmdistill.records.lease import Lease
for line in sys.stdin:
    try:
        Lease(Path(line.strip())).__enter__()
        print("held", flush=True)
    except LockedError:
        print("refused", flush=True)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lease.__file__).parents[2])}


@pytest.fixture
def holder(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def record(root, epoch=1):
    path = root / "lease" / f"{epoch}.json"
    return unseal(path, path.read_bytes())


def rewritten(root, **changes):
    (root / "lease" / "1.json").write_bytes(seal({**record(root), **changes}))


def files(root):
    return sorted(path.name for path in (root / "lease").iterdir())


def test_a_live_holder_is_named_at_once(tmp_path, holder):
    since = record(tmp_path)["started_at"]
    before = time.perf_counter()
    with pytest.raises(LockedError) as caught, Lease(tmp_path):
        pass
    assert time.perf_counter() - before < 0.5
    mend = "wait for it, end it, or take the study over with --takeover"
    for part in (str(tmp_path), f"process {holder.pid}", os.uname().nodename, since, mend):
        assert part in str(caught.value)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_followed(tmp_path, holder, reaped):
    os.kill(holder.pid, signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # Dead, but still listed.
    with Lease(tmp_path) as held:
        assert held.epoch == 2
        assert record(tmp_path, 2)["pid"] == os.getpid()
        held.check()


@pytest.mark.parametrize("changes", [{"boot_id": "another"}, {"process_start": 1}, {"pid": 2**22 + 1}])
def test_a_process_that_only_looks_like_the_holder_does_not_hold_it(tmp_path, changes):
    with Lease(tmp_path):
        rewritten(tmp_path, **changes)
        require_free(tmp_path)


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}])
def test_a_holder_that_cannot_be_seen_from_here_is_believed(tmp_path, changes):
    with Lease(tmp_path):
        rewritten(tmp_path, pid=2**22 + 1, **changes)
        with pytest.raises(LockedError, match=r"by process 4194305 on \S+ since .*--takeover"):
            require_free(tmp_path)
        with Lease(tmp_path, takeover=True) as taken:
            assert taken.epoch == 2


def test_one_process_does_not_hold_it_twice(tmp_path):
    with Lease(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()}"), Lease(tmp_path):
        pass


def test_an_overtaken_holder_learns_who_followed_it(tmp_path, holder):
    with Lease(tmp_path, takeover=True) as ours:
        ours.check()
        with Lease(tmp_path, takeover=True):
            message = f"was taken over by process {os.getpid()} on .*; this driver ends, and what it finished"
            with pytest.raises(LockedError, match=message):
                ours.check()
        with pytest.raises(LockedError, match="was taken over"):
            ours.check()
    with pytest.raises(LockedError, match="was taken over"):
        ours.check()


def test_it_is_released_after_an_error_and_the_record_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), Lease(tmp_path):
        _ = 1 / 0
    require_free(tmp_path)
    with Lease(tmp_path) as held:
        assert held.epoch == 2
    assert files(tmp_path) == ["1.end.json", "1.json", "2.end.json", "2.json"]


def test_other_studies_are_free(tmp_path):
    with Lease(tmp_path / "a") as first, Lease(tmp_path / "b") as second:
        assert first.epoch == second.epoch == 1


def test_a_damaged_lease_can_only_be_taken_over(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "1.json").write_text("{")
    with (
        pytest.raises(LockedError, match=r"by somebody \(.*1\.json is damaged\); .*--takeover"),
        Lease(tmp_path),
    ):
        pass
    with Lease(tmp_path, takeover=True):
        pass


def test_a_disk_that_lets_two_create_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(StudyError, match="this disk lets two processes create one file; use another"):
        Lease(tmp_path).__enter__()


def test_of_many_that_follow_a_killed_holder_one_gets_it(tmp_path):
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
    with Lease(tmp_path):
        stale = seal({**record(tmp_path), "process_start": 1})
    for number in range(10):
        folder = tmp_path / str(number)
        (folder / "lease").mkdir(parents=True)
        (folder / "lease" / "1.json").write_bytes(stale)
        for taker in takers:
            taker.stdin.write(f"{folder}\n")
        assert sorted(taker.stdout.readline() for taker in takers) == ["held\n", *["refused\n"] * 3]
        assert files(folder) == ["1.json", "2.json"]
    for taker in takers:
        taker.communicate()


def test_a_holder_that_came_while_another_was_judged_is_not_passed_over(tmp_path, monkeypatch):
    with Lease(tmp_path):
        rewritten(tmp_path, process_start=1)
        judged = lease._require_ended
        others = []

        def slow(root, epoch):
            judged(root, epoch)
            if not others:
                others.append(None)
                others[0] = Lease(root).__enter__()

        monkeypatch.setattr(lease, "_require_ended", slow)
        with pytest.raises(LockedError, match=f"by process {os.getpid()} "):
            Lease(tmp_path).__enter__()
        assert others[0].epoch == 2


def test_the_record_says_what_a_person_would_ask(tmp_path):
    with Lease(tmp_path):
        written = json.loads((tmp_path / "lease" / "1.json").read_text())
    assert {"host", "pid", "started_at"} < set(written)
