"""Orders that hang: told by their steps, dumped and ended by a thread that needs no GIL."""

import contextlib
import faulthandler
import os
import re
import socket
import time
from types import TracebackType
from typing import Self

from mmdistill.records.rows import AttemptRow
from mmdistill.records.study import StudyFolder

FOLDER = "dumps"
# Setting the alarm again costs as much as a small step.
MOST_SECONDS_BETWEEN = 1.0


class Watchdog:
    """Ends this process, with a dump of all stacks, when an order takes no step for too long.

    Use as a context around an order and call :meth:`beat` at every step. One per process at a time.
    """

    def __init__(self, folder: StudyFolder, order_id: str, patience: float) -> None:
        """Watch an order.

        Args:
            folder: the study; the dump goes to its ``dumps/``.
            order_id: the order.
            patience: seconds without a beat after which the process is ended.
        """
        name = re.sub(r"[^\w.-]", "_", f"{order_id}.{socket.gethostname()}.{os.getpid()}.txt")
        self._path = folder.root / FOLDER / name
        # A beat shortly before the alarm is set again must count in full.
        self._between = min(MOST_SECONDS_BETWEEN, patience / 4)
        self._seconds = patience + self._between
        self._armed = 0.0

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Say that the order goes on."""
        if time.monotonic() - self._armed >= self._between:
            self._arm()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)


def note_hung(folder: StudyFolder, order_id: str) -> bool:
    """Close the attempt at an order that the watchdog ended, naming its dump; return if there was one.

    Called by whoever sees the order next: the process that knew is gone.
    """
    dumps = [path for path in (folder.root / FOLDER).glob(f"{order_id}.*") if path.stat().st_size]
    attempt = open_attempt(folder, order_id) if dumps else None
    if attempt is None:
        return False
    begun = attempt.started_at.timestamp()
    names = ", ".join(sorted(f"{FOLDER}/{path.name}" for path in dumps if path.stat().st_mtime >= begun))
    if not names:
        return False
    reason = f"hung: no step for longer than resources.patience; see {names} in the study's folder"
    return folder.end_attempt(order_id, attempt.attempt, "hung", reason)


def open_attempt(folder: StudyFolder, order_id: str) -> AttemptRow | None:
    """Return the latest attempt at an order if it has no end."""
    attempts = folder.attempts(order_id)
    return attempts[-1] if attempts and attempts[-1].outcome is None else None


def remove_unused(folder: StudyFolder) -> None:
    """Remove the empty files that processes left which were killed from outside; none may be running."""
    for path in (folder.root / FOLDER).glob("*"):
        if not path.stat().st_size:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Not empty, or not there.
        (folder.root / FOLDER).rmdir()
