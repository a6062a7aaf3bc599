"""The folder of one study: what is committed there, once and for all."""

import contextlib
import dataclasses
import itertools
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from mmdistill.errors import ConfigError, ConflictError, InputError, Problem, StudyError
from mmdistill.records.code import this_code
from mmdistill.records.finals import Final, final_body, parsed_final, read_side, write_sides
from mmdistill.records.revisions import normal, refusals, stamped
from mmdistill.records.rows import (
    AttemptRow,
    EpochRow,
    MatrixRow,
    OpeningRow,
    PredictionRow,
    StudyRow,
    TrialRow,
)
from mmdistill.records.schema import from_json, to_json
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.shelf import Shelf
from mmdistill.records.store import put_if_absent, replace_atomically
from mmdistill.redaction import redacted, redacted_tree

_RECORD = "study.json"
_LATER = "revisions"


def unfenced() -> None:
    """Allow every commit: of a worker, or of a test that drives alone."""


class Revision(NamedTuple):
    """What the study is from one moment on.

    Attributes:
        row: its row of the table ``studies``.
        resolved: the study file with all defaults, as plain JSON values.
    """

    row: StudyRow
    resolved: dict[str, Any]


class StudyFolder:
    """The folder of one study; every change is durable when the call returns.

    Results that other processes commit are found when they are asked for by name, or by opening the folder
    again.

    Attributes:
        root: the folder.
        revisions: what the study was and is, oldest first.
        fence: called before every commit; raises when this process may make none any more.
    """

    def __init__(
        self, root: Path, revisions: Sequence[Revision], fence: Callable[[], None] = unfenced
    ) -> None:
        self.root = root
        self.revisions = tuple(revisions)
        self.fence = fence
        self._decisions = Shelf(root / "decisions")
        self._selections = Shelf(root / "selection")
        self._openings = Shelf(root / "openings")
        self._attempts = Shelf(root / "attempts")
        self._records = Shelf(root / "finals")
        self._withdrawn = Shelf(root / "withdrawn")
        self._parsed: dict[str, Final] = {}

    @property
    def row(self) -> StudyRow:
        """Return what the table ``studies`` says of the newest revision."""
        return self.revisions[-1].row

    @property
    def resolved(self) -> dict[str, Any]:
        """Return the newest study file with all defaults, as plain JSON values."""
        return self.revisions[-1].resolved

    @property
    def revision(self) -> int:
        """Return the number of the newest revision, from 1."""
        return len(self.revisions)

    @classmethod
    def create(
        cls,
        root: Path,
        record: StudyRow,
        study_toml: str,
        resolved: Mapping[str, Any],
        fence: Callable[[], None] = unfenced,
    ) -> Self:
        """Return the study in ``root``, begun now or before; what ``resolved`` adds makes a new revision.

        Args:
            root: the folder; made if it is not there.
            record: the row of the study, kept if it begins or is extended; its revision is set here.
            study_toml: the text of the study file, kept for people.
            resolved: what identifies the study, plain JSON values; secrets in it are not written down.
            fence: see the class.

        Raises:
            ConfigError: if the study was begun with another ``resolved`` that this one does not extend; one
                problem per key.
        """
        fence()
        resolved = redacted_tree(resolved)
        if not (root / _RECORD).exists():
            _write_revision(root, root / _RECORD, stamped(record, None), study_toml, resolved)
        study = cls.open(root, fence)
        problems = study.differences(resolved)
        if problems:
            raise ConfigError(problems)
        if normal(study.resolved) == normal(resolved):
            return study
        row = stamped(record, study.row)
        _write_revision(root, _revision_path(root, row.revision), row, study_toml, resolved)
        return cls.open(root, fence)

    @classmethod
    def open(cls, root: Path, fence: Callable[[], None] = unfenced) -> Self:
        """Return the study in ``root``.

        Raises:
            InputError: if there is none.
            StudyError: if one of its revisions is missing, torn or was altered.
        """
        if not (root / _RECORD).is_file():
            mend = "give the folder that `mmdistill run` printed"
            raise InputError([Problem(str(root), "no study here (there is no `study.json`)", mend)])
        return cls(root, [_read_revision(root, n + 1) for n in range(1 + len(Shelf(root / _LATER)))], fence)

    def differences(self, resolved: Mapping[str, Any]) -> list[Problem]:
        """Return why a study with another ``resolved`` neither continues nor extends this one, per key."""
        path, opened = _revision_path(self.root, self.revision), {row.arm for row in self.openings()}
        old, new = normal(self.resolved), normal(redacted_tree(resolved))
        return refusals(str(path), old, new, begun=bool(self.decisions()), opened=opened)

    def put_decision(self, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Commit a decision and return it; if one of that name is there, return that one: the first wins."""
        self.fence()
        self._decisions.put(name, value)
        return self._decisions[name]

    def decisions(self) -> dict[str, dict[str, Any]]:
        """Return all decisions by name."""
        return dict(self._decisions)

    def put_selection(self, value: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Commit a frozen selection; return its file name and value.

        A value equal to the latest selection is not written again; another one becomes the next number.
        """
        number = len(self._selections)
        latest = self.selection()
        if latest is None or normal(latest) != normal(value):
            self.fence()
            number += 1
            while not self._selections.put(str(number), value):
                number += 1
        return self._selections.path(str(number)).name, self._selections[str(number)]

    def selection(self) -> dict[str, Any] | None:
        """Return the latest frozen selection, or None before the first."""
        number = len(self._selections)
        return self._selections[str(number)] if number else None

    def selections(self) -> list[dict[str, Any]]:
        """Return the frozen selections, oldest first; number n is in ``selection/<n>.json``."""
        return [self._selections[str(number + 1)] for number in range(len(self._selections))]

    def put_opening(self, rows: Sequence[OpeningRow]) -> None:
        """Record that an order is about to read the test split; the first record of an order stays.

        Raises:
            ConflictError: if the order was recorded with other trials.
        """
        (order_id,) = {row.order_id for row in rows}
        self.fence()
        self._openings.put(order_id, {"rows": [to_json(row) for row in rows]})
        recorded = {row["trial_id"] for row in self._openings[order_id]["rows"]}
        if recorded != {row.trial_id for row in rows}:
            path = self._openings.path(order_id)
            raise ConflictError(f"{path} records the trials {sorted(recorded)}, not those of this order")

    def has_opening(self, order_id: str) -> bool:
        """Return whether an order may read the test split: its look is in the ledger."""
        return order_id in self._openings

    def openings(self) -> list[OpeningRow]:
        """Return every recorded look at the test split, sorted as the table is."""
        rows = [from_json(OpeningRow, row) for body in self._openings.values() for row in body["rows"]]
        return sorted(rows, key=lambda row: (row.opening, row.arm, row.fold, row.seed_index, row.trial_id))

    def begin_attempt(self, order_id: str) -> int:
        """Record that this process starts an order; return the number of the attempt, from 1."""
        row = AttemptRow(
            order_id=order_id,
            attempt=1,
            started_at=datetime.now(UTC),
            host=socket.gethostname(),
            pid=os.getpid(),
            **this_code()._asdict(),
        )
        while _begin(row) in self._attempts or not self._attempts.put(_begin(row), to_json(row)):
            row = dataclasses.replace(row, attempt=row.attempt + 1)
        return row.attempt

    def end_attempt(
        self,
        order_id: str,
        attempt: int,
        outcome: str,
        error: str | None = None,
        cpu_s: float | None = None,
    ) -> bool:
        """Record how an attempt ended; return False if it had ended before.

        Args:
            order_id: of the order.
            attempt: number from :meth:`begin_attempt`.
            outcome: ``complete``, ``failed``, ``storage`` (the disk could not be used) or ``hung``.
            error: why, in one line.
            cpu_s: CPU seconds it took, where known.
        """
        error = None if error is None else redacted(error)
        end = {"ended_at": datetime.now(UTC).isoformat(), "outcome": outcome, "error": error, "cpu_s": cpu_s}
        return self._attempts.put(f"{order_id}.{attempt}.end", end)

    def attempts(self, order_id: str | None = None) -> list[AttemptRow]:
        """Return all attempts, or those of one order, sorted by order and number; a killed one has no end."""
        if order_id is None:
            names = [name for name in self._attempts if name.endswith(".begin")]
            rows = [self._attempt(name) for name in names]
            return sorted(rows, key=lambda row: (row.order_id, row.attempt))
        numbered = (f"{order_id}.{number}.begin" for number in itertools.count(1))
        return [self._attempt(name) for name in itertools.takewhile(self._attempts.__contains__, numbered)]

    def _attempt(self, name: str) -> AttemptRow:
        end = self._attempts.get(f"{name.removesuffix('.begin')}.end", {})
        return from_json(AttemptRow, {**self._attempts[name], **end})

    def put_final(self, final: Final) -> bool:
        """Commit the result of an order; return False, and change nothing, if it has one already.

        Curves, predictions and matrices are written first; the record in ``finals/`` is the commit mark.
        """
        if self.has_final(final.order_id):
            return False
        self.fence()
        final = dataclasses.replace(final, trials=[_without_secrets(row) for row in final.trials])
        sides = write_sides(self.root, final)
        return self._records.put(self._name(final.order_id), final_body(final, sides))

    def withdraw(self, order_id: str) -> None:
        """Take a failed result back, so that the order is tried anew; the record of it stays.

        Raises:
            StudyError: if the order has no result, or one that is not a failure.
        """
        if not self.final(order_id).is_given_up:
            raise StudyError(f"{self.root}: order {order_id!r} did not fail, so its result stays")
        self.fence()
        body = {"order_id": order_id, "withdrawn_at": datetime.now(UTC).isoformat()}
        self._withdrawn.put(f"{order_id}~{self._withdrawals[order_id] + 1}", body)
        self._withdrawals[order_id] += 1
        del self._parsed[order_id]

    @cached_property
    def _withdrawals(self) -> Counter[str]:
        """How many results of each order were withdrawn; none is while the order is being executed."""
        return Counter(name.rpartition("~")[0] for name in self._withdrawn)

    def _name(self, order_id: str) -> str:
        """Return the name of the record that holds, or will hold, the result that counts."""
        number = self._withdrawals[order_id]
        return f"{order_id}~{number}" if number else order_id

    def has_final(self, order_id: str) -> bool:
        """Return whether an order has a result; one that another process has just committed counts."""
        return self._name(order_id) in self._records

    def final_ids(self) -> set[str]:
        """Return the orders that have a result."""
        orders = {name.partition("~")[0] for name in self._records}
        return {order_id for order_id in orders if self.has_final(order_id)} if self._withdrawals else orders

    def final(self, order_id: str, *, whole: bool = False) -> Final:
        """Return the result of an order, with its curves, predictions and matrices if ``whole``.

        Raises:
            StudyError: if there is none, or if one of its files is torn, damaged or altered.
        """
        if order_id not in self._parsed:
            if not self.has_final(order_id):
                raise StudyError(f"{self.root} has no result of order {order_id!r}")
            name = self._name(order_id)
            self._parsed[order_id] = parsed_final(
                self._records.path(name), order_id, self._records.load(name)
            )
        return self._completed(self._parsed[order_id]) if whole else self._parsed[order_id]

    def forget(self) -> None:
        """Give up the memory of the results that were read; they are read again when they are asked for."""
        self._parsed.clear()

    def finals(self) -> Iterator[Final]:
        """Return the results of all orders, sorted by order, without curves and predictions."""
        return (self.final(order_id) for order_id in sorted(self.final_ids()))

    def side(self, final: Final, folder: str) -> pa.Table:
        """Return the ``curves``, ``predictions`` or ``matrices`` of a result as a table, verified."""
        return read_side(self.root, final, folder)

    def _completed(self, final: Final) -> Final:
        epochs = [EpochRow(**row) for row in self.side(final, "curves").to_pylist()]
        predictions = [PredictionRow(**row) for row in self.side(final, "predictions").to_pylist()]
        matrices = [MatrixRow(**row) for row in self.side(final, "matrices").to_pylist()]
        return dataclasses.replace(final, epochs=epochs, predictions=predictions, matrices=matrices)


def _without_secrets(row: TrialRow) -> TrialRow:
    error = None if row.error is None else redacted(row.error)
    return dataclasses.replace(row, error=error, config_json=redacted(row.config_json))


def _begin(row: AttemptRow) -> str:
    return f"{row.order_id}.{row.attempt}.begin"


def _revision_path(root: Path, number: int) -> Path:
    return root / _RECORD if number == 1 else root / _LATER / f"{number}.json"


def _write_revision(
    root: Path, path: Path, row: StudyRow, study_toml: str, resolved: Mapping[str, Any]
) -> None:
    what = "study" if path.name == _RECORD else _LATER
    replace_atomically(root / "study.toml", redacted(study_toml).encode(), "study")
    # If somebody else was faster, theirs stays; the caller reads and compares it.
    with contextlib.suppress(ConflictError):
        put_if_absent(path, seal({"row": redacted_tree(to_json(row)), "resolved": resolved}), what)


def _read_revision(root: Path, number: int) -> Revision:
    path = _revision_path(root, number)
    try:
        body = unseal(path, path.read_bytes())
        return Revision(from_json(StudyRow, body["row"]), body["resolved"])
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; restore it from a backup") from None
    except (KeyError, ValueError) as error:
        raise StudyError(f"{path} was written by another version of mmdistill: {error}") from error
