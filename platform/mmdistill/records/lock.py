"""One driver per study: a lock file that outlives no process."""

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmdistill.errors import ConflictError, LockedError
from mmdistill.records.store import put_if_absent

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc")


class DriverLock:
    """Holds ``lock.json`` in a study's folder while its block runs.

    A lock is taken over without a word if its holder is provably gone: same host, and the machine was
    started again, or no process has that number, or one that started at another time. Holding it twice in
    one process is refused too.

    Raises:
        LockedError: on entry, at once, if a live process or another host holds it.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "lock.json"
        self._content = b""

    def __enter__(self) -> Self:
        content = json.dumps(_this_process(), indent=1).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self._path.parent):
            while not self._taken(content):
                self._remove(self._dead_holder())
        self._content = content
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(FileNotFoundError), _one_at_a_time(self._path.parent):
            self._remove(self._content)

    def _taken(self, content: bytes) -> bool:
        try:
            return put_if_absent(self._path, content)
        except (ConflictError, FileNotFoundError):  # The second: released while it was looked at.
            return False

    def _dead_holder(self) -> bytes:
        """Return the content of a stale lock; raise LockedError if it is not stale."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        try:
            holder = json.loads(content)
            gone, text = _is_gone(holder), _described(holder)
        except (ValueError, KeyError, TypeError):
            raise LockedError(
                f"{self._path} is not readable; remove it if no driver runs the study"
            ) from None
        if gone:
            return content
        elsewhere = holder["host"] != socket.gethostname()
        mend = f"if that machine is gone, remove {self._path}" if elsewhere else "wait for it, or end it"
        raise LockedError(f"{self._path.parent} is being run by {text}; {mend}")

    def _remove(self, content: bytes) -> None:
        """Remove the lock if it still has this content.

        The lock gets a name of its own first, so of two processes that remove the same one, each is certain
        what it removed; `_one_at_a_time` is not available on every network disk.
        """
        aside = self._path.with_name(f"{uuid.uuid4().hex}.tmp")
        with contextlib.suppress(FileNotFoundError):
            if self._path.read_bytes() != content:
                return
            self._path.rename(aside)
            if aside.read_bytes() != content:
                with contextlib.suppress(FileExistsError):
                    self._path.hardlink_to(aside)
            aside.unlink()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Not every network disk can; taking the lock file stays atomic there.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started_at": datetime.now(UTC).isoformat(),
    }


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return False
    return bool(holder["boot_id"] != _boot_id() or holder["process_start"] != _process_start(holder["pid"]))


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['started_at']}"


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it does not run (any more)."""
    try:
        stat = (_PROCESSES / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in the second field may hold blanks and brackets: count from behind its end.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])
