"""Points at which tests let the program fail."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmdistill import faults
from mmdistill.faults import POINTS, Plan, plan, point
from mmdistill.records.store import put_if_absent, replace_atomically

PLATFORM = Path(faults.__file__).parents[1]
WRITER = """
import sys
from pathlib import Path
from mmdistill.records.store import put_if_absent
for number in range(3):
    put_if_absent(Path(sys.argv[1]) / "finals" / str(number), b"x" * 1000)
    print(number, flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_planned():
    yield
    plan(None)


def started(folder, fault, testing="1"):
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM), "MMDISTILL_FAULT": json.dumps(fault)}
    environment |= {"MMDISTILL_TESTING": testing}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, folder], env=environment, stdout=subprocess.PIPE, text=True
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".tmp")


def test_nothing_happens_without_a_plan(tmp_path):
    for name in POINTS:
        point(name, tmp_path)


@pytest.mark.parametrize("action", ["EIO", "ENOSPC"])
def test_an_error_comes_at_the_passage_that_was_asked_for_and_names_the_file(tmp_path, action):
    planned = Plan("finals.commit", 2, action)
    plan(planned)
    put_if_absent(tmp_path / "finals" / "a", b"")
    with pytest.raises(OSError, match=r"\.tmp") as caught:
        put_if_absent(tmp_path / "finals" / "b", b"")
    assert caught.value.errno == getattr(errno, action)
    put_if_absent(tmp_path / "finals" / "c", b"")
    assert names(tmp_path / "finals") == ["a", "c"]
    assert planned.passed["finals.draft"] == 3
    assert not list((tmp_path / "finals").glob("*.tmp"))


def test_the_kind_of_a_file_can_be_said(tmp_path):
    planned = Plan()
    plan(planned)
    replace_atomically(tmp_path / "a", b"", "tensors")
    assert set(planned.passed) == {"tensors.draft", "tensors.written", "tensors.commit", "tensors.committed"}


@pytest.mark.parametrize(
    ("name", "there", "draft"), [("finals.commit", ["0"], 1000), ("finals.committed", ["0", "1"], 1000)]
)
def test_a_process_is_killed_where_its_environment_says(tmp_path, name, there, draft):
    process = started(tmp_path, {"point": name, "nth": 2, "action": "kill"})
    assert process.communicate(timeout=60)[0] == "0\n"
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path / "finals") == there
    (left,) = (tmp_path / "finals").glob("*.tmp")
    assert left.stat().st_size == draft


def test_a_torn_write_leaves_the_first_half_of_a_draft(tmp_path):
    process = started(tmp_path, {"point": "finals.written", "action": "torn"})
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "finals").iterdir()
    assert (left.suffix, left.stat().st_size) == (".tmp", 500)


def test_a_process_hangs_until_it_is_ended(tmp_path):
    process = started(tmp_path, {"point": "finals.draft", "nth": 2, "action": "hang"})
    assert process.stdout.readline() == "0\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.communicate()


def test_the_environment_alone_plans_nothing(tmp_path):
    process = started(tmp_path, {"point": "finals.draft"}, testing="")
    assert process.communicate(timeout=60)[0] == "0\n1\n2\n"
    assert process.returncode == 0


@pytest.mark.parametrize("wrong", [{"point": "finals.comit"}, {"action": "burn"}])
def test_what_could_never_happen_is_refused(wrong):
    with pytest.raises(ValueError, match=r"no point|action 'burn'"):
        Plan(**wrong)
