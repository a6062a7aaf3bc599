"""One driver per study: the right to drive it has a number, and a higher number ends a lower one.

``lease/<epoch>.json`` says who drives, ``lease/<epoch>.end.json`` that it has ended. Both are written once
and never removed, so a driver that was paused sees, however late it wakes up, that another one followed it.
"""

import contextlib
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from mmdistill.errors import LockedError, StudyError
from mmdistill.records.shelf import Shelf

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc")


class Holder(NamedTuple):
    """Who drives a study, or owns a folder.

    Attributes:
        host: name of the machine.
        boot_id: of the machine's last start.
        pid_namespace: inside which ``pid`` counts.
        pid: of the process.
        process_start: clock ticks between the machine's start and that of the process.
        started_at: when it got the right, ISO-8601 in UTC.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    process_start: int | None
    started_at: str

    @property
    def is_here(self) -> bool:
        """Return whether this process could see the holder if it ran."""
        return (self.host, self.pid_namespace) == (socket.gethostname(), _pid_namespace())

    @property
    def is_gone(self) -> bool:
        """Return whether the holder has provably ended; one that cannot be seen from here has not."""
        if self.host == socket.gethostname() and self.boot_id != _boot_id():
            return True
        return self.is_here and self.process_start != _process_start(self.pid)

    def __str__(self) -> str:
        """Return the holder in words."""
        return f"process {self.pid} on {self.host} since {self.started_at}"


class Lease:
    """The right to drive the study in a folder, while its block runs.

    A driver that has provably ended is followed without a word: same machine, and that was started again, or
    no process has the number, or one that started at another time. Any other is believed, a paused one and
    one on another machine too, unless ``takeover`` is set: then it is followed all the same, and ends at its
    next :meth:`check`. A result it commits in between has the same key as ours and counts once.

    Attributes:
        epoch: the number of this right, from 1; 0 before it is held.

    Raises:
        LockedError: on entry, at once, if somebody else holds it.
        StudyError: on entry, if the disk lets two processes create the same file.
    """

    def __init__(self, root: Path, *, takeover: bool = False) -> None:
        self._root, self._takeover = root, takeover
        self.epoch = 0

    def __enter__(self) -> Self:
        shelf = _shelf(self._root)
        while not self.epoch:
            newest = _newest(self._root)
            if not self._takeover:
                _require_ended(self._root, newest)
            # The one after the one that was judged: whoever gets it meanwhile is judged in the next round.
            if shelf.put(str(newest + 1), this_process()._asdict()):
                self.epoch = newest + 1
        if shelf.put(str(self.epoch), {}):
            raise StudyError(f"{shelf.folder}: this disk lets two processes create one file; use another")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A process that could not say so is found to be gone.
        with contextlib.suppress(OSError):
            _shelf(self._root).put(_end(self.epoch), {"ended_at": datetime.now(UTC).isoformat()})

    def check(self) -> None:
        """Return if this is still the right to drive; called before every commit of the driver.

        Raises:
            LockedError: naming who has taken the study over.
        """
        if _shelf(self._root).path(str(self.epoch + 1)).exists():
            newest = _holder(self._root, _newest(self._root))
            raise LockedError(
                f"{self._root} was taken over by {newest}; this driver ends, and what it finished is kept"
            )


def require_free(root: Path) -> None:
    """Return if nobody drives the study in ``root``.

    Raises:
        LockedError: naming who does.
    """
    _require_ended(root, _newest(root))


def _require_ended(root: Path, epoch: int) -> None:
    if not epoch or _end(epoch) in _shelf(root):
        return
    holder = _holder(root, epoch)
    if isinstance(holder, Holder) and holder.is_gone:
        return
    mend = "wait for it, end it, or take the study over with --takeover"
    raise LockedError(f"{root} is being run by {holder}; {mend}")


def _shelf(root: Path) -> Shelf:
    return Shelf(root / "lease")


def _end(epoch: int) -> str:
    return f"{epoch}.end"


def _newest(root: Path) -> int:
    return max((int(name) for name in _shelf(root) if name.isdigit()), default=0)


def _holder(root: Path, epoch: int) -> Holder | str:
    """Return who holds a right; a text if the record does not say."""
    shelf = _shelf(root)
    try:
        return Holder(**shelf[str(epoch)])
    except (StudyError, TypeError):
        return f"somebody ({shelf.path(str(epoch))} is damaged)"


def this_process() -> Holder:
    """Return this process as a holder of whatever it writes itself into."""
    return Holder(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        started_at=datetime.now(UTC).isoformat(),
    )


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _pid_namespace() -> str:
    return str((_PROCESSES / "self" / "ns" / "pid").readlink())


def _process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it does not run (any more)."""
    try:
        stat = (_PROCESSES / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in the second field may hold blanks and brackets: count from behind its end.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])
