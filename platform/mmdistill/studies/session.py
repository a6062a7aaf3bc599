"""A study in progress: the protocol on one side, the folder on the other.

Both executors use it, Ray's and the one in process: ask what is ready, execute, tell that an order ended.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from mmdistill.errors import StudyError
from mmdistill.pipeline.execute import failed_final
from mmdistill.pipeline.order import Order
from mmdistill.records.board import TENSORBOARD, Board
from mmdistill.records.finals import Final
from mmdistill.records.rows import OpeningRow
from mmdistill.records.study import StudyFolder
from mmdistill.studies.protocol import Proposer, State, Step, StudyProtocol
from mmdistill.studies.study import Study

# A failed order is tried again this often before it is written down as failed.
RETRIES = 2
DIED = "its process died, perhaps out of memory"
GIVEN_UP = "given up"


class Session:
    """Commits decisions, hands out orders, keeps the TensorBoard tree up to date."""

    def __init__(self, study: Study, folder: StudyFolder, propose: Proposer) -> None:
        self.study, self.folder = study, folder
        self.protocol = StudyProtocol(study, propose, arm_revisions(folder))
        self.failed: list[str] = []
        self._board = Board(folder, folder.root / TENSORBOARD)
        self._failures: Counter[str] = Counter()
        # These grow in place; what the protocol is shown is always what is on record.
        self._decisions, self._selections = folder.decisions(), folder.selections()
        self._state = State(self._decisions, _Finals(folder), self._selections)
        # What the protocol has to look at again: everything at first.
        self._ended: set[str] | None = None
        self._step: Step | None = None

    @property
    def tensorboard(self) -> Path:
        """Return the root of the TensorBoard tree."""
        return self._board.root

    @property
    def is_finished(self) -> bool:
        """Return whether nothing is left to do."""
        return self._current().is_finished

    @property
    def blocks(self) -> list[int]:
        """Return the confirmation pairs that each selection added, the one to come included."""
        ends = sorted({0, *(found["pairs"] for found in self._selections), self.study.file.confirm.pairs})
        return [after - before for before, after in itertools.pairwise(ends)]

    def ready(self, in_flight: Collection[str], most: int | None = None) -> list[Order]:
        """Return the orders that can start now and are not in flight, most urgent first.

        Decisions and the selection they come from are durable before this returns, and so is the entry in
        the ledger of test openings for every test order among them.

        Args:
            in_flight: orders that have been started.
            most: return at most so many; putting an order together is what costs.
        """
        agenda = self._current().agenda
        orders = [] if agenda is None else list(itertools.islice(agenda.ready(in_flight), most))
        for order in orders:
            if order.kind == "test":
                self._open_test(order)
        return orders

    def ended(self, order: Order, outcome: str) -> str:
        """Take note that an order ended, and return what became of it.

        One that failed too often in this session is written down as failed, and one whose process was
        ``lost`` at once: the executor has started it again before it says so. Either is ``given up``; any
        other outcome is returned as it is.

        Raises:
            StudyError: if the disk failed it (``storage``): that says nothing about the order.
            LockedError: if another driver has taken the study over.
        """
        self.folder.fence()
        if outcome == "storage":
            raise StudyError(self._disk(order))
        self._failures[order.order_id] += outcome == "failed"
        if outcome == "lost" or self._failures[order.order_id] > RETRIES:
            self.folder.put_final(failed_final(order, why_failed(self.folder, order.order_id)))
            self.failed.append(order.title)
            outcome = GIVEN_UP
        self._ended, self._step = (self._ended or set()) | {order.order_id}, None
        if self.folder.has_final(order.order_id) and order.lanes:
            # The event files are a view, written again by the next run: they must not end this one.
            with contextlib.suppress(OSError):
                self._board.show(self.folder.final(order.order_id))
        return outcome

    def _disk(self, order: Order) -> str:
        reason = why_failed(self.folder, order.order_id, "it could not even be noted what failed")
        return (
            f"{self.folder.root}: the disk failed {order.title!r} ({reason}); nothing finished is lost, "
            "and once the disk is mended the same command resumes"
        )

    def show_missing(self) -> None:
        """Write the TensorBoard files that a killed driver left out; they are a view, never the truth."""
        self._board.catch_up()

    def _current(self) -> Step:
        while self._step is None:
            step = self.protocol.next_step(self._state, self._ended)
            self._ended = set()
            for decision in step.decisions:
                self._decisions[decision.name] = self.folder.put_decision(decision.name, decision.value)
            if step.selection is not None:
                self._selections.append(self.folder.put_selection(step.selection)[1])
            if step.agenda is not None:
                self._step = step
                # What the protocol needs of the results it has; the rows stay on disk.
                self.folder.forget()
        return self._step

    def _open_test(self, order: Order) -> None:
        now, number = datetime.now(UTC), self.protocol.agenda.draft(order.order_id).opening
        rows = [
            OpeningRow(
                opening=number,
                opened_at=now,
                arm=lane.arm,
                fold=lane.run.fold,
                seed_index=lane.seed_index or 0,
                trial_id=lane.trial_id,
                selection=f"{number}.json",
                order_id=order.order_id,
            )
            for lane in order.lanes
        ]
        self.folder.put_opening(rows)


class _Finals(Mapping[str, Final]):
    """The results of a folder, each read when it is asked for."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder, self._known = folder, folder.final_ids()

    def __getitem__(self, order_id: str) -> Final:
        if order_id not in self:
            raise KeyError(order_id)
        return self._folder.final(order_id)

    def __contains__(self, order_id: object) -> bool:
        # The folder is asked about orders that ended just now, and about no other.
        return order_id in self._known or (isinstance(order_id, str) and self._folder.has_final(order_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.final_ids())

    def __len__(self) -> int:
        return len(self._folder.final_ids())


def why_failed(folder: StudyFolder, order_id: str, otherwise: str = DIED) -> str:
    """Return what the last attempt at an order that noted an error noted, ``otherwise`` if none did."""
    errors = [attempt.error for attempt in folder.attempts(order_id)]
    return next((error for error in reversed(errors) if error), otherwise)


def arm_revisions(folder: StudyFolder) -> dict[str, int]:
    """Return with which revision of the study each arm came."""
    return {arm["name"]: arm.get("revision", 1) for arm in json.loads(folder.row.arms_json)}
