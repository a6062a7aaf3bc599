"""CPU seconds of a command with everything it starts, daemons that outlive their parent included."""

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK = os.sysconf("SC_CLK_TCK")
_PERIOD_S = 0.2


class CpuMeter:
    """Looks at every process below this one five times a second and keeps the last CPU time of each.

    What a process burns in its last fifth of a second is missed; short-lived ones below that are not seen.
    Whoever loses its parent becomes a child of this process, so nothing gets away.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._seen: dict[tuple[int, int], float] = {}
        self._stop = threading.Event()

    def run(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and wait for all it left behind."""
        self._stop.clear()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            done = subprocess.run(command, text=True, check=True, **options)  # type: ignore[call-overload]
            _outlive()
        finally:
            self._stop.set()
            watch.join()
        return done

    @property
    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes seen so far."""
        return sum(self._seen.values())

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(_PERIOD_S)
        self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        found: dict[int, tuple[int, float]] = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                pid = int(place.name)
                parents[pid] = int(fields[1])
                found[pid] = (int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICK)
        for pid, (start, cpu_s) in found.items():
            if _descends(pid, parents):
                self._seen[pid, start] = cpu_s


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid := parents.get(pid, 0):
        if pid == os.getpid():
            return True
    return False


def _outlive(limit_s: float = 60.0) -> None:
    """Wait for the daemons that the command left behind."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_PERIOD_S)
        except ChildProcessError:
            return
