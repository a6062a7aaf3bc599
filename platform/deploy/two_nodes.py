#!/usr/bin/env python3
r"""A Ray cluster of several nodes on this machine, as one is started by hand on several.

    python platform/deploy/two_nodes.py --port 26379
    RAY_AUTH_TOKEN_PATH=<printed> mmdistill run search_spaces/quickstart.toml --address 127.0.0.1:26379
    RAY_AUTH_TOKEN_PATH=<printed> ray job submit --address http://127.0.0.1:28265 -- \
        mmdistill run search_spaces/quickstart.toml --address auto

One line of JSON tells the address, the file of the token and the processes of each node; Ctrl-C, SIGTERM or
the end of its input ends them, by their process numbers. On several machines, run the same `ray start` lines
there, with the host name of the head for 127.0.0.1, the same token and the same variables. Ray listens on
every interface whatever it is told: the token keeps others out, and a closed network should as well.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # One thread per order, as on one machine: it is part of what decides the bits.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # A node that says nothing counts as lost after 3 x (2 + 5) seconds; Ray's own figures make it 50.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
# Ray gives 10002 to 19999 to its workers.
WORKER_PORTS = range(10002, 20000)
START_SECONDS, END_SECONDS = 180.0, 10.0


def main() -> int:
    """Start the nodes, wait to be ended, and end them."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="mm"))
    nodes: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            environment = os.environ | VARIABLES | _token(folder)
            nodes.extend(_started(number, options, folder, environment) for number in range(options.nodes))
            sys.stdout.write(json.dumps(_told(options, folder, nodes)) + "\n")
            sys.stdout.flush()
            sys.stdin.read()
    finally:
        for node in nodes:
            _end_node(node)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    parser.add_argument("--port", type=int, default=26379, help="of the head, outside 10002-19999")
    parser.add_argument(
        "--dashboard-port",
        type=int,
        default=28265,
        help="on loopback, outside 10002-19999; the next ones are the agents'",
    )
    options = parser.parse_args()
    if options.port in WORKER_PORTS or options.dashboard_port in WORKER_PORTS:
        parser.error("Ray keeps the ports 10002 to 19999 for its workers; give others")
    return options


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _token(folder: Path) -> dict[str, str]:
    """Return the token's variables: those of this environment, or a new file that only this user reads."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return {name: os.environ[name]}
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def _started(
    number: int, options: argparse.Namespace, folder: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    head = [
        "--head",
        f"--port={options.port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={options.dashboard_port}",
        f"--temp-dir={folder / 'r'}",
    ]
    place = head if number == 0 else [f"--address=127.0.0.1:{options.port}"]
    common = [
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={options.cpus}",
        "--object-store-memory=100000000",
        # Jobs go through the agent of the head, which has one port for all clusters of a machine otherwise.
        f"--dashboard-agent-listen-port={options.dashboard_port + 1 + number}",
    ]
    command = [str(Path(sys.executable).with_name("ray")), "start", *place, *common, "--block"]
    log = folder / f"node{number}.log"
    with log.open("wb") as out:
        node = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    limit = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if node.poll() is not None or time.monotonic() > limit:
            _end_node(node)
            raise SystemExit(f"node {number} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
    return node


def _told(
    options: argparse.Namespace, folder: Path, nodes: list["subprocess.Popen[bytes]"]
) -> dict[str, object]:
    token = folder / "token"
    return {
        "address": f"127.0.0.1:{options.port}",
        "dashboard": f"http://127.0.0.1:{options.dashboard_port}",
        "token_file": str(token) if token.is_file() else None,
        "nodes": [{"pid": node.pid, "raylet": _raylet(node.pid)} for node in nodes],
    }


def _raylet(pid: int) -> int | None:
    """Return the process that is the node: its workers end with it."""
    for child in _descendants(pid):
        with contextlib.suppress(OSError):
            if b"raylet/raylet" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                return child
    return None


def _end_node(node: "subprocess.Popen[bytes]") -> None:
    """End a node's processes, first with a request; the head takes half a minute to follow it."""
    ours = [*_descendants(node.pid), node.pid]
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(END_SECONDS)
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found += [*_descendants(child), child]
    return found


def _children(pid: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                yield int(folder.name)


if __name__ == "__main__":
    sys.exit(main())
