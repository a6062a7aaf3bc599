"""Named points at which a test lets the program fail; nothing happens there otherwise.

Every change of the disk passes points. A test calls :func:`plan`, or starts a process with
``MMDISTILL_TESTING=1`` and ``MMDISTILL_FAULT='{"point": "finals.commit", "nth": 2, "action": "kill"}'``.
"""

import errno
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ACTIONS = ("kill", "EIO", "ENOSPC", "torn", "hang")

# What is written through `records.store`, and the moments of such a write.
_WRITTEN = {
    "lease": "the right to drive a study",
    "study": "the study file and the record of a study that begins",
    "revisions": "the record of a study that is extended",
    "decisions": "proposals of a generation",
    "selection": "a frozen selection",
    "openings": "an entry of the ledger of test openings",
    "attempts": "begin and end of an attempt",
    "curves": "the curves of an order",
    "predictions": "the predictions of an order",
    "matrices": "the matrices of an order, as pictures show them",
    "finals": "the result of an order",
    "withdrawn": "the withdrawal of a failed result",
    "tensors": "the tensors of a cache entry",
    "checkpoints": "tensors or mark of a snapshot inside a training",
    "entries": "the commit mark of a cache entry",
    "compact": "a derived table",
    "manifest": "the list of the derived tables",
}
_MOMENTS = {
    "draft": "before the draft is written",
    "written": "the draft is written, but not durable",
    "commit": "the draft is durable, but has not got its name",
    "committed": "the file has its name, but its folder is not durable",
}
POINTS: dict[str, str] = {
    f"{what}.{moment}": f"{meaning}: {when}"
    for what, meaning in _WRITTEN.items()
    for moment, when in _MOMENTS.items()
} | {
    "order.begun": "an attempt is on record, nothing is computed",
    "order.computed": "the result of an order is known, nothing of it is written",
    "order.recorded": "the result of an order is durable, nobody knows",
    "entries.aside": "before a damaged cache entry is set aside",
    "compact.publish": "the manifest is durable, before a table gets its plain name",
    "compact.tidy": "before a table of an older manifest is removed",
}
"""What each point means, by name."""


@dataclass
class Plan:
    """What shall happen; without a point, passages are only counted.

    Attributes:
        point: where.
        nth: at which passage of this process, from 1.
        action: ``kill`` (SIGKILL), ``EIO`` or ``ENOSPC`` (raised), ``torn`` (the file that is being written
            loses its second half, then SIGKILL) or ``hang``.
        passed: how often each point was passed.
    """

    point: str = ""
    nth: int = 1
    action: str = "kill"
    passed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Refuse what could never happen.

        Raises:
            ValueError: if there is no such point or action.
        """
        if (self.point and self.point not in POINTS) or self.action not in ACTIONS:
            raise ValueError(f"no point {self.point!r} or action {self.action!r}")


_plan: Plan | None = None


def plan(planned: Plan | None) -> None:
    """Set what shall happen in this process; None ends it."""
    global _plan
    _plan = planned


def point(name: str, target: Path | None = None) -> None:
    """Do nothing, or what a test has planned for this point.

    Args:
        name: of the point, as in :data:`POINTS`.
        target: the file that is being written there, for a torn write and for the message of an error.

    Raises:
        OSError: if that is planned.
    """
    if _plan is None:
        return
    _plan.passed[name] += 1
    if name == _plan.point and _plan.passed[name] == _plan.nth:
        _act(_plan.action, target)


def _act(action: str, target: Path | None) -> None:
    if action in {"EIO", "ENOSPC"}:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), None if target is None else str(target))
    while action == "hang":
        time.sleep(1)
    if action == "torn" and target is not None:
        os.truncate(target, target.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("MMDISTILL_TESTING") == "1" and "MMDISTILL_FAULT" in os.environ:
    plan(Plan(**json.loads(os.environ["MMDISTILL_FAULT"])))
