"""What must be set before Ray is imported, and a private cluster on this machine.

Ray reads its authentication mode once, at import; workers inherit the rest. Nothing here imports Ray at
module level.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmdistill.records.lease import Holder, this_process

# What the processes that execute orders need as well, wherever they run.
WORKER_VARIABLES = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Two threads spin for each other: on small models one is faster, and it is part of what decides the bits.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
VARIABLES = {
    **WORKER_VARIABLES,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # What Tune would restore itself from: all trials each time, and every order remembered as text.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # Tune would swallow Ctrl-C; `launch` has a handler of its own.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The new output prints boxes of its own even when told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Orders run in actors, which come too early for the worker processes that Ray starts in advance.
    "RAY_prestart_worker_first_driver": "0",
}
OBJECT_STORE_BYTES = 256 * 2**20
# A unix socket path holds 107 bytes; Ray appends about 60.
LONGEST_TEMPORARY_FOLDER = 40
# What starts the autoscaler, what forwards logs, and the dashboard: one driver on one machine needs none.
_UNNEEDED = ("start_monitor", "start_log_monitor", "start_api_server")
_PREFIX, _OWNER = "mm", "scratch-owner.json"


def prepare() -> None:
    """Set the environment of Ray, with a token that only this process and its children know.

    One token per process: Ray keeps the first it reads.
    """
    os.environ.update(VARIABLES)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def temporary_folder() -> Path:
    """Return a new folder with a short path, readable by this user only."""
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary_place()))


def temporary_place() -> Path:
    """Return where folders with a short path are made."""
    base = tempfile.gettempdir()
    return Path(base if len(base) <= LONGEST_TEMPORARY_FOLDER else "/tmp")


def claim(scratch: Path) -> None:
    """Say in a scratch folder which process it belongs to."""
    (scratch / _OWNER).write_text(json.dumps(this_process()._asdict()))


def remove_abandoned(place: Path) -> None:
    """Remove the scratch folders in ``place`` whose driver was killed.

    Only those that say they are ours: with no name, or with one whose process may live, a folder stays.
    """
    for folder in place.glob(f"{_PREFIX}*"):
        owner = _owner(folder)
        if owner is not None and owner.is_gone:
            shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> Holder | None:
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return None
        return Holder(**json.loads((folder / _OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def local_cluster(*, groups: bool = False) -> Iterator[Path]:
    """Start a private Ray on this machine and end it afterwards; yield its scratch folder.

    It never joins a cluster that happens to run here.

    Args:
        groups: whether worker groups will run. What one that was killed had reserved is given back by a
            helper of Ray Train that asks the dashboard, so there is one then, on loopback.
    """
    remove_abandoned(temporary_place())
    scratch = temporary_folder()
    claim(scratch)
    with contextlib.ExitStack() as after:
        after.callback(shutil.rmtree, scratch, ignore_errors=True)
        prepare()
        import ray

        after.enter_context(_known_address() if groups else _small_head())
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=groups,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(scratch / "r"),
        )
        after.callback(ray.shutdown)
        yield scratch


@contextlib.contextmanager
def _small_head() -> Iterator[None]:
    """Let a cluster that is about to start do without the processes that nobody needs.

    Together they take two CPU seconds, as much as all else of Ray. There is no setting for it; should Ray
    rename what starts them, they start as ever.
    """
    from ray._private import node

    whole = node.Node
    node.Node = type("SmallHead", (whole,), dict.fromkeys(_UNNEEDED, lambda *_given, **_named: None))
    try:
        yield
    finally:
        node.Node = whole


@contextlib.contextmanager
def _known_address() -> Iterator[None]:
    """Fix the port of the cluster that is about to start, and tell its processes.

    The helper above looks for any Ray on the machine otherwise, and fails where it finds two.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
