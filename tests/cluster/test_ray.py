"""The same protocol on a real local Ray: one study, a killed driver, a worker group, an interruption."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.cluster.environment import local_cluster, temporary_place
from mmdistill.data.datasets.planted import Planted
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import content_hash, tables
from mmdistill.reports.query import query
from mmdistill.studies.study import open_study

pytestmark = pytest.mark.ray

STUDY = """
name = "rayed"
seed = 5
[run]
epochs = 12
batch_size = 32
[run.teachers]
epochs = 6
out_of_fold = 2
[run.data]
dataset = "made"
student = ["face"]
privileged = ["audio", "decoy"]
label_fraction = 0.5
[[arms]]
name = "student_only"
recipe = "student_only"
[[arms]]
name = "mt_pkdot"
recipe = "mt_pkdot"
edits = { "terms.transport.k" = 10 }
[search]
trials = 4
startup = 2
generation = 2
top = 2
seeds = 2
space = { "terms.transport.k" = { low = 5, high = 20, integer = true } }
[confirm]
pairs = 3
"""
SECONDS = 240


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A study on a table that is given by a path relative to where the user stands."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "rayed.toml").write_text(STUDY)
    write_table(folder / "made")
    with contextlib.chdir(folder):
        yield folder / "rayed.toml"


def write_table(folder):
    folder.mkdir()
    samples = Planted(rows=(160, 64, 96)).samples()
    names = sorted(samples.inputs)
    columns = {
        f"x_{name}": pa.FixedSizeListArray.from_arrays(pa.array(samples.inputs[name].ravel()), 16)
        for name in names
    }
    columns |= {"label": samples.labels, "split": samples.split, "group": samples.groups}
    pq.write_table(pa.table(columns), folder / "made.parquet")
    modalities = {name: {"shape": [16]} for name in names}
    card = {"name": "made", "title": "Made", "task": "classification", "classes": 4, "file": "made.parquet"}
    (folder / "card.json").write_text(json.dumps(card | {"modalities": modalities}))


@pytest.fixture(scope="module")
def undisturbed(file, begin, finish, tmp_path_factory):
    """The same study without Ray, one order after another."""
    root = tmp_path_factory.mktemp("undisturbed") / "rayed"
    return finish(begin(open_study(file), root)).folder


def started(file, root, *edits, environment=None):
    code = "from mmdistill.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "run", str(file), "--output", str(root), *edits]
    log = (root.parent / "log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def scratch_of(process):
    owners = {path: json.loads(path.read_text()) for path in temporary_place().glob("mm*/scratch-owner.json")}
    return [path.parent for path, owner in owners.items() if owner["pid"] == process.pid]


def wait_for_finals(process, root, count):
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit and process.poll() is None:
        if len(list((root / "finals").glob("*.json"))) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"fewer than {count} results: {(root.parent / 'log').read_text()[-3000:]}")


def test_a_killed_driver_loses_nothing_and_the_table_is_that_of_an_undisturbed_run(
    file, undisturbed, tmp_path
):
    root = tmp_path / "rayed"
    first = started(file, root)
    wait_for_finals(first, root, 6)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path.stem for path in (root / "finals").glob("*.json")}
    assert finished
    (scratch,) = scratch_of(first)
    second = started(file, root)
    assert second.wait(SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    assert not scratch.exists()
    folder = StudyFolder.open(root)
    assert content_hash(tables(folder)) == content_hash(tables(undisturbed))
    again = query(root, "SELECT order_id FROM attempts GROUP BY order_id HAVING count(outcome) > 1")
    assert again.num_rows == 0
    attempts = query(root, "SELECT order_id, count(*) AS n FROM attempts GROUP BY order_id").to_pylist()
    assert {row["order_id"] for row in attempts if row["n"] > 1}.isdisjoint(finished)
    # Orders wait for each other many times here, and the processes stay all the same.
    processes = query(root, "SELECT DISTINCT host, pid FROM attempts")
    assert processes.num_rows <= 2 * len(os.sched_getaffinity(0))


def test_an_interrupted_run_ends_cleanly_and_says_how_to_go_on(file, tmp_path):
    root = tmp_path / "rayed"
    process = started(file, root)
    wait_for_finals(process, root, 2)
    (scratch,) = scratch_of(process)
    written = {path.name for path in (scratch / "r" / "session_latest" / "logs").iterdir()}
    assert "raylet.out" in written
    assert written.isdisjoint({"monitor.log", "log_monitor.log", "dashboard.log"})
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert "same command" in (tmp_path / "log").read_text()
    assert (root / "lease" / "1.end.json").exists()


# What Ray's workers import first: the first order that is begun hangs, and holds the GIL.
HANGS_ONCE = """
import ctypes, os, sys
if any("default_worker" in argument for argument in sys.orig_argv):
    from mmdistill.records.study import StudyFolder
    honest = StudyFolder.begin_attempt
    def begin_attempt(*arguments):
        number = honest(*arguments)
        try:
            os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return number
        ctypes.PyDLL(None).sleep(1000)
    StudyFolder.begin_attempt = begin_attempt
"""


def test_an_order_that_hangs_is_dumped_ended_and_run_again(file, undisturbed, tmp_path):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HANGS_ONCE.format(flag=str(tmp_path / "hung")))
    path = os.pathsep.join([str(hook), *sys.path])
    root = tmp_path / "rayed"
    process = started(file, root, "resources.patience=15", environment={**os.environ, "PYTHONPATH": path})
    assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    folder = StudyFolder.open(root)
    (hung,) = [attempt for attempt in folder.attempts() if attempt.outcome == "hung"]
    (dump,) = (root / "dumps").iterdir()
    assert f"see dumps/{dump.name} in the study's folder" in hung.error
    assert "in begin_attempt" in dump.read_text()
    outcomes = [a.outcome for a in folder.attempts() if a.order_id == hung.order_id]
    assert outcomes == ["hung", "complete"]
    assert content_hash(tables(folder)) == content_hash(tables(undisturbed))


def test_one_cluster_in_this_process(file, begin, undisturbed, tmp_path):
    """A worker group computes what one process does; Ray's workers see the standard library and the token."""
    root = tmp_path / "rayed"
    session = begin(open_study(file), root)
    order = next(order for order in session.ready(()) if order.lanes)
    (tmp_path / "order.json").write_text(order.model_dump_json())
    config = {
        "order": str(tmp_path / "order.json"),
        "study": str(root),
        "cache": str(root / "cache"),
        "directory": str(file.parent),
        "workers": 2,
        "worker": {"CPU": 0.9},
        "device": "cpu",
        "gpus": 0.0,
        "patience": 300.0,
    }
    with local_cluster(groups=True) as scratch:
        from mmdistill.cluster.worker import fit_order

        assert fit_order(config | {"scratch": str(scratch / "train")}) == "complete"
        assert seen_by_a_task() == ("Linux", "token")
    ours = {t.trial_id: t.metrics for t in session.folder.final(order.order_id).trials}
    alone = {t.trial_id: t.metrics for t in undisturbed.final(order.order_id).trials}
    assert ours.keys() == alone.keys()
    for trial_id, metrics in ours.items():
        assert metrics["log_loss"] == pytest.approx(alone[trial_id]["log_loss"], rel=1e-4)


def seen_by_a_task():
    import ray

    @ray.remote
    def system():
        import platform

        return platform.system(), os.environ.get("RAY_AUTH_MODE")

    return ray.get(system.remote())
