"""A cluster that runs already: reach it, and see that every node can take orders before any is started."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdistill.cluster.environment import VARIABLES, WORKER_VARIABLES
from mmdistill.errors import InputError, Problem, StudyError

LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")
# Ray itself tries for minutes.
CONNECT_SECONDS, ANSWER_SECONDS, NODE_SECONDS = 5.0, 25.0, 60.0
_SCRATCH = "scratch-"


def checked_address(address: str) -> str:
    """Return ``local`` or the ``HOST:PORT`` to join; nothing is contacted yet.

    ``auto`` is the cluster that runs this process, in a job submitted with ``ray job submit``.

    Raises:
        InputError: if it is no address, or if there is no token for that cluster.
    """
    if address == LOCAL:
        return address
    found = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if not ADDRESS.fullmatch(found):
        raise InputError([_wrong_address(address, found)])
    if not _has_token():
        rule = "the cluster asks for a token, and this environment has none"
        mend = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it"
        raise InputError([Problem(f"--address {address}", rule, mend)])
    return found


def _wrong_address(address: str, found: str) -> Problem:
    if address == AUTO:
        rule = f"`auto` is for jobs inside a cluster, where RAY_ADDRESS is HOST:PORT (got {found!r})"
        return Problem("--address", rule, "give HOST:PORT or `local`")
    rule = f"an address is HOST:PORT, `auto` or `local` (got {address!r})"
    return Problem("--address", rule, "give the address that `ray start --head` printed")


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    # The second is where Ray itself looks in the end.
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return Path(path).is_file()


@contextlib.contextmanager
def joined_cluster(address: str, study: Path, cache: Path) -> Iterator[Path]:
    """Join a running cluster; yield a scratch folder that every node sees, and remove it afterwards.

    Args:
        address: ``HOST:PORT`` of its head.
        study: the study's folder, on a disk that all nodes share.
        cache: the stage cache, on such a disk as well.

    Raises:
        StudyError: if nothing answers in time, if the token is refused, or naming each node that cannot
            import this package or does not see the folders.
    """
    os.environ.update(VARIABLES)
    _reach(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # The token stays out of it: a node that takes part in the cluster has it.
    variables = {**WORKER_VARIABLES, "RAY_ADDRESS": address}
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": variables},
    )
    try:
        _check_nodes((study, cache))
        with _scratch(study) as folder:
            yield folder
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _scratch(study: Path) -> Iterator[Path]:
    for left in study.glob(f"{_SCRATCH}*"):  # By a driver that was killed: there is one driver at a time.
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=study)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reach(address: str) -> None:
    """Raise StudyError unless a Ray of our version answers there and takes our token."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StudyError(f"nothing answers at {address}: {error}; is the cluster running?") from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        what = f"no Ray answers at {address} within {ANSWER_SECONDS:g} s, though something listens there"
        raise StudyError(f"{what}; give the port of `ray start --head --port`") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        if "AuthToken" in said:
            raise StudyError(f"the cluster at {address} refuses the token; give the one it was started with")
        raise StudyError(f"the cluster at {address} cannot be joined: {said.splitlines()[-1]}")


def _check_nodes(folders: tuple[Path, Path]) -> None:
    """Let a task on every node look for a file that was just written into each folder."""
    nonce = secrets.token_hex(16)
    places = [folder.resolve() for folder in folders]
    probes = [place / f"{nonce}.tmp" for place in places]
    for probe in probes:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text(nonce)
    try:
        wrong = node_problems([str(probe) for probe in probes], nonce)
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)
    if wrong:
        raise StudyError(f"not every node can take orders: {'; '.join(wrong)}")


def node_problems(probes: list[str], nonce: str) -> list[str]:
    """Return what keeps nodes of the joined cluster from taking orders, one text per node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    import mmdistill

    look = ray.remote(num_cpus=0, max_retries=0)(_looker())
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {}
    for node in nodes:
        here = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        asked[here.remote(probes, nonce, str(Path.cwd()), mmdistill.__version__)] = _named(node)
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    problems = {asked[one]: f"did not answer within {NODE_SECONDS:g} s" for one in late}
    for one in done:
        try:
            answer: str | None = ray.get(one)
        except ray.exceptions.RayError as error:
            answer = str(error).strip().splitlines()[-1]
        if answer:
            problems[asked[one]] = answer
    return [f"{node} {problem}" for node, problem in problems.items()]


def _named(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeID'][:8]} ({node['NodeManagerAddress']})"


def _looker() -> Callable[[list[str], str, str, str], str | None]:
    # Not a function of this module: it must arrive on nodes that do not have this package.
    def look(probes: list[str], nonce: str, directory: str, version: str) -> str | None:
        from pathlib import Path

        try:
            import mmdistill
        except ImportError as error:
            return f"cannot import mmdistill ({error}); install the same environment on every node"
        if mmdistill.__version__ != version:
            return f"has mmdistill {mmdistill.__version__}, not {version}"
        for probe in map(Path, probes):
            if not probe.is_file() or probe.read_text() != nonce:
                return f"does not see {probe.parent}; use a disk that all nodes share (--output, --cache)"
        if not Path(directory).is_dir():
            return f"has no folder {directory}; start from one that all nodes share"
        return None

    return look
