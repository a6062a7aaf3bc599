"""Studies on Ray whose processes are killed: nothing is lost, nothing is there twice, nothing differs."""

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import content_hash, tables
from mmdistill.reports.query import query
from mmdistill.studies.study import open_study

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

SEED = 20261122
# What is killed under each driver before the driver itself is; orders run in worker groups where it says so.
SESSIONS = (
    ("actor", "actor"),
    ("worker", "worker"),
    ("actor",),
    ("actor", "actor"),
    ("worker", "worker"),
    ("actor",),
    ("actor", "actor"),
    ("worker", "worker"),
    ("actor",),
    (),
)
KILLS = 25


ROOT = Path(__file__).parents[2]
SECONDS = 300
STUDY = """
name = "chaos"
seed = 5
[run]
epochs = 16
batch_size = 32
[run.teachers]
epochs = 6
out_of_fold = 2
[run.data]
dataset = "planted"
options = { rows = [160, 64, 96] }
student = ["face"]
privileged = ["audio", "decoy"]
label_fraction = 0.5
[[arms]]
name = "student_only"
recipe = "student_only"
[[arms]]
name = "audio"
recipe = "hinton"
edits = { "teachers.pool" = ["audio"] }
[[arms]]
name = "joint"
recipe = "hinton"
[[arms]]
name = "all"
recipe = "hinton"
edits = { "teachers.pool" = ["each", "joint"] }
[[arms]]
name = "mt_pkdot"
recipe = "mt_pkdot"
edits = { "terms.transport.k" = 10 }
[search]
trials = 12
startup = 4
generation = 4
top = 2
seeds = 1
space = { "terms.transport.k" = false }
[confirm]
pairs = 2
[resources]
lanes = 2
patience = 60
"""
CODE = "from mmdistill.cli.main import main; raise SystemExit(main())"


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "chaos.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="session")
def undisturbed(file, begin, finish, tmp_path_factory):
    """Return the hash of the tables of an undisturbed run, without Ray, one order after another."""
    root = tmp_path_factory.mktemp("undisturbed") / "chaos"
    finish(begin(open_study(file), root))
    return content_hash(tables(StudyFolder.open(root)))


class Driver:
    """`mmdistill run` as a process of its own."""

    def __init__(self, file, root, *arguments, environment=None):
        self.root, self.log = root, root.parent / f"{root.name}.log"
        command = [sys.executable, "-c", CODE, "run", str(file), "--output", str(root), *arguments]
        self.attempts_before = {path.name for path in (root / "attempts").glob("*")}
        self.finals_before = self.finals()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), **(environment or {})},
                start_new_session=True,
            )

    def finals(self):
        return len(list((self.root / "finals").glob("*.json")))

    def wait_for(self, count):
        """Return once the study has some results; fail if the driver ends before."""
        limit = time.monotonic() + SECONDS
        while self.finals() < count:
            if time.monotonic() > limit or self.process.poll() is not None:
                pytest.fail(f"{self.finals()} results, not {count}: {self.tail()}")
            time.sleep(0.02)

    def open_attempts(self):
        """Return (order, attempt, process) of the attempts that this driver's processes have begun."""
        found = []
        for path in sorted((self.root / "attempts").glob("*.begin.json")):
            end = path.with_name(path.name.replace(".begin.", ".end."))
            if path.name not in self.attempts_before and not end.exists():
                row = json.loads(path.read_text())
                row = row.get("body", row)
                found.append((row["order_id"], row["attempt"], row["pid"]))
        return found

    def has_completed(self, order_id, attempt):
        rows = [r for r in StudyFolder.open(self.root).attempts() if r.order_id == order_id]
        return any((r.attempt, r.outcome) == (attempt, "complete") for r in rows)

    def tail(self):
        return self.log.read_text()[-3000:]

    def kill(self):
        """Kill the driver and see that everything it started ends."""
        ours = descendants(self.process.pid)
        assert self.process.poll() is None, self.tail()
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in ours), 180)

    def end(self, code=0):
        assert self.process.wait(SECONDS) == code, self.tail()


def wait_until(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def stat_of(pid):
    """Return the state and the parent of a process, or nothing if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return None


def is_alive(pid):
    found = stat_of(pid)
    return found is not None and found[0] not in {"Z", "X"}


def descendants(pid):
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        found = stat_of(folder.name)
        if found is not None:
            parents.setdefault(int(found[1]), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        queue += (children := parents.get(queue.pop(), []))
        found += children
    return found


@pytest.fixture
def drive():
    """Return what starts a driver; those left are ended."""
    drivers = []

    def start(*arguments, **options):
        drivers.append(Driver(*arguments, **options))
        return drivers[-1]

    yield start
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()


def free_port():
    """Return the first of some free ports above those of Ray's workers and below outgoing ones."""
    while True:
        port = random.randrange(20_000, 32_000, 10)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for near in range(port, port + 4):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", near))
            return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start two nodes as one does by hand; return what the script tells."""
    script = ROOT / "platform" / "deploy" / "two_nodes.py"
    command = [sys.executable, str(script), f"--port={free_port()}", f"--dashboard-port={free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    with (tmp_path_factory.mktemp("nodes") / "log").open("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )
        try:
            ready, _, _ = select.select([process.stdout], [], [], SECONDS)
            line = process.stdout.readline() if ready else b""
            assert line, Path(log.name).read_text()
            yield json.loads(line)
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture(scope="module")
def token(cluster):
    return {"RAY_AUTH_TOKEN_PATH": cluster["token_file"], "RAY_AUTH_MODE": "token"}


def check(root, undisturbed):
    """See that a finished study has every row once, and those of an undisturbed run."""
    rows = query(root, "SELECT arm, number, count(*) AS n FROM trials WHERE phase = 'search' GROUP BY ALL")
    assert [row["n"] for row in rows.to_pylist()] == [1] * 60
    twice = query(root, "SELECT trial_id FROM trials GROUP BY trial_id HAVING count(*) > 1")
    assert twice.num_rows == 0
    assert content_hash(tables(StudyFolder.open(root))) == undisturbed


def kill_a_process(driver, killed):
    """Kill a process in the middle of an order; return False if the order was quicker."""
    for order_id, attempt, pid in driver.open_attempts():
        # More than two relaunches are not promised.
        if killed[order_id] < 1 and pid in descendants(driver.process.pid) and is_alive(pid):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not is_alive(pid), 30)
            if not driver.has_completed(order_id, attempt):
                killed[order_id] += 1
                return True
    return False


def hit(driver, chance):
    """Kill as many processes as a session asks for, each after some new results; return how many."""
    killed = Counter()
    for _ in driver.victims:
        driver.wait_for(driver.finals() + chance.choice((0, 1, 1, 2)))
        wait_until(lambda: kill_a_process(driver, killed), SECONDS)
    return killed.total()


def test_25_kills_of_drivers_actors_and_workers_change_nothing(file, undisturbed, drive, tmp_path):
    root, chance, landed = tmp_path / "chaos", random.Random(SEED), Counter()
    for victims in SESSIONS:
        driver = drive(file, root, f"resources.workers={int('worker' in victims)}")
        driver.victims = victims
        driver.wait_for(driver.finals_before + 1)
        landed[victims[0] if victims else "none"] += hit(driver, chance)
        driver.wait_for(driver.finals() + chance.choice((0, 1)))
        driver.kill()
        landed["driver"] += 1
    drive(file, root).end()
    assert landed == {"driver": 10, "actor": 9, "worker": 6, "none": 0}
    assert landed.total() == KILLS
    check(root, undisturbed)


def test_a_worker_group_that_loses_a_worker_to_an_error_ends_and_says_why(drive, tmp_path):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        """
import sys
if any("default_worker" in argument for argument in sys.orig_argv):
    from mmdistill.pipeline.bench import Bench
    honest = Bench.students
    def students(self, *arguments):
        if self.runtime.rank == 1:
            raise ValueError("the second worker has no luck")
        return honest(self, *arguments)
    Bench.students = students
"""
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(hook), str(ROOT / "platform")])}
    root = tmp_path / "chaos"
    # One arm without a teacher: its first order trains students.
    text = STUDY[: STUDY.index('[[arms]]\nname = "audio"')] + STUDY[STUDY.index("[search]") :]
    (tmp_path / "one.toml").write_text(text.replace('space = { "terms.transport.k" = false }\n', ""))
    driver = drive(tmp_path / "one.toml", root, "resources.workers=2", environment=environment)

    def told():
        assert driver.process.poll() is None, driver.tail()
        folder = StudyFolder.open(root) if (root / "study.json").is_file() else None
        return folder and [a.error for a in folder.attempts() if a.outcome == "failed"]

    wait_until(told, SECONDS)
    assert "the second worker has no luck" in told()[0]
    driver.kill()


def test_the_second_of_two_drivers_leaves_at_once_naming_the_first(file, drive, tmp_path):
    root = tmp_path / "chaos"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mmdistill.cli.running"], check=True)
    imports = time.monotonic() - start
    first = drive(file, root)
    first.wait_for(1)
    start = time.monotonic()
    second = drive(file, root)
    assert second.process.wait(SECONDS) == 1
    # The machine is busy with the first: what Python takes to import is not the lock's.
    assert time.monotonic() - start <= imports + 2
    assert f"is being run by process {first.process.pid} on " in first.tail()
    first.kill()
    drive(file, root).end()


def test_a_job_runs_a_study_on_its_own_cluster(file, undisturbed, cluster, token, tmp_path):
    root = tmp_path / "chaos"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster["dashboard"]]
    run = [sys.executable, "-c", CODE, "run", str(file), "--output", str(root), "--address", "auto"]
    done = subprocess.run(
        [*ray, "--", *run],
        env={**os.environ, **token},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "# chaos: accuracy on planted (test rows)" in done.stdout
    check(root, undisturbed)


def test_a_lost_node_costs_the_orders_on_it(file, undisturbed, cluster, token, drive, tmp_path):
    root, node = tmp_path / "chaos", cluster["nodes"][1]
    driver = drive(file, root, "--address", cluster["address"], environment=token)
    driver.wait_for(5)
    lost = []

    def runs_there():
        there = descendants(node["pid"])
        lost[:] = [(order, attempt) for order, attempt, pid in driver.open_attempts() if pid in there]
        return lost

    wait_until(runs_there, SECONDS)
    os.kill(node["raylet"], signal.SIGKILL)
    killed = time.monotonic()
    order, attempt = lost[0]
    again = root / "attempts" / f"{order}.{attempt + 1}.begin.json"
    wait_until(lambda: again.exists() or driver.has_completed(order, attempt), 60)
    assert time.monotonic() - killed <= 30
    driver.end()
    check(root, undisturbed)
