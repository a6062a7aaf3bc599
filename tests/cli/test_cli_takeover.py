"""Two drivers of one study, and commands that look after its records."""

import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmdistill.cli import running
from mmdistill.errors import LockedError
from mmdistill.records.lease import Lease
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import content_hash, tables
from mmdistill.reports.query import query

PLATFORM = Path(running.__file__).parents[2]
DRIVER = """
import sys
from mmdistill.cli import running
from mmdistill.cli.main import main
from mmdistill.cluster.inline import run_inline
from mmdistill.pipeline.cache import StageCache

def on_inline(session, cache, listen):
    def told(event):
        listen(event)
        print(event.order.order_id, flush=True)
        sys.stdin.readline()
    run_inline(session, StageCache(cache), told)

running.on_ray = on_inline
sys.exit(main(sys.argv[1:]))
"""


def driver(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM), "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def science(root):
    return content_hash(tables(StudyFolder.open(root)))


def test_a_paused_driver_that_was_overtaken_ends_before_its_next_commit(
    call, inline, finished, study_file, tmp_path
):
    root = tmp_path / "out"
    paused = driver("run", study_file, "--output", root)
    for _ in range(3):
        assert paused.stdout.readline()
        paused.stdin.write("\n")
        paused.stdin.flush()
    assert paused.stdout.readline()
    os.kill(paused.pid, signal.SIGSTOP)
    refused = call("run", study_file, "--output", root)
    assert refused.code == 1
    assert f"process {paused.pid} on" in refused.err
    taken = call("run", study_file, "--output", root, "--takeover")
    assert taken.code == 0
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    os.kill(paused.pid, signal.SIGCONT)
    _, err = paused.communicate("\n" * 20, timeout=120)
    assert paused.returncode == 1
    assert re.search(rf"{root} was taken over by process {os.getpid()} on .*; this driver ends", err)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} <= {"1.end.json"}
    assert all(after[path] == content for path, content in before.items())
    assert science(root) == science(finished)
    found = Counter(tables(StudyFolder.open(root))["trials"]["trial_id"].to_pylist())
    assert set(found.values()) == {1}
    assert call("verify", root).code == 0


def test_a_second_driver_is_refused_before_anything_heavy_is_loaded(study_file, tmp_path, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    code = """
import sys
from mmdistill.cli.main import main
code = main(sys.argv[1:])
assert not {"torch", "ray", "optuna"} & set(sys.modules)
sys.exit(code)
"""
    monkeypatch.chdir(tmp_path)
    for root, more in ((tmp_path / "out", ["--output", "out"]), (tmp_path / "results" / "tiny", [])):
        with Lease(root):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-c", code, "run", str(study_file), *more]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 1
        assert f"process {os.getpid()} on {os.uname().nodename} since" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_study_file_that_cannot_be_read_is_told_of_by_the_run(call, tmp_path):
    (tmp_path / "torn.toml").write_text("name = ")
    answer = call("run", tmp_path / "torn.toml")
    assert answer.code == 2


def test_the_name_that_is_edited_counts(call, study_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Lease(tmp_path / "results" / "other"):
        answer = call("run", study_file, "name=other")
    assert answer.code == 1
    assert "is being run by process" in answer.err


def test_verify_says_what_was_checked(call, finished):
    answer = call("verify", finished)
    assert answer.code == 0
    assert re.match(r"\d+ files checked: \d+ attempts, \d+ cache, 16 compact, ", answer.out)
    assert answer.out.endswith("0 problems\n")
    found = call("verify", finished, "--json").json
    assert found["ok"]
    assert found["problems"] == []
    assert found["checked"]["finals"] == len(StudyFolder.open(finished).final_ids())


def test_verify_names_what_is_damaged(call, study_file, inline, tmp_path):
    root, cache = tmp_path / "out", tmp_path / "stages"
    assert call("run", study_file, "--output", root, "--cache", cache).code == 0
    broken = [next((root / "finals").glob("search*")), next(cache.glob("teacher-*"))]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-9])
    answer = call("verify", root, "--cache", cache)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0] == f"{broken[0]}: is torn or is no record of this study; restore it from a backup"
    assert str(broken[1]) in lines[1]
    assert " is damaged: SHA-256 is " in lines[1]
    assert lines[-1] == "2 problems"
    found = call("verify", root, "--cache", cache, "--json")
    assert (found.code, found.json["ok"], len(found.json["problems"])) == (1, False, 2)
    assert set(found.json["problems"][0]) == {"where", "rule", "mend"}


def test_rebuild_prints_both_hashes(call, finished, tmp_path):
    before = science(finished)
    answer = call("rebuild", finished)
    assert answer.code == 0
    assert answer.out == f"before  {before}\nafter   {before}\n"
    found = call("rebuild", finished, "--json").json
    assert (found["before"], found["after"], found["outdated"]) == (before, before, False)
    assert found["rows"]["trials"] == query(finished, "SELECT count(*) AS n FROM trials")["n"][0].as_py()


def test_rebuild_goes_on_from_damaged_tables_and_waits_for_a_driver(call, finished):
    before = science(finished)
    (finished / "compact" / "trials.parquet").write_bytes(b"")
    answer = call("rebuild", finished)
    assert (answer.code, answer.out) == (0, f"before  absent or damaged\nafter   {before}\n")
    with Lease(finished):
        answer = call("rebuild", finished)
    assert answer.code == 1
    assert "is being run by process" in answer.err


def test_a_lease_that_is_held_here_is_no_reason_for_a_reader_to_wait(call, finished):
    with Lease(finished), pytest.raises(LockedError), Lease(finished):
        pass
    with Lease(finished):
        assert call("status", finished).code == 0
        assert call("verify", finished).code == 0
