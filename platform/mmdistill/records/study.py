"""The folder of one study: what is committed there, once and for all."""

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from mmdistill.errors import ConfigError, ConflictError, InputError, Problem, StudyError
from mmdistill.records.finals import Final, final_body, parsed_final, read_side, write_sides
from mmdistill.records.rows import AttemptRow, EpochRow, OpeningRow, PredictionRow, StudyRow
from mmdistill.records.schema import from_json, to_json
from mmdistill.records.sealed import pack, seal, unseal
from mmdistill.records.shelf import Shelf
from mmdistill.records.store import put_if_absent, replace_atomically
from mmdistill.settings import flattened

_RECORD = "study.json"


class StudyFolder:
    """The folder of one study; every change is durable when the call returns.

    Attributes:
        root: the folder.
        row: what the table ``studies`` says.
        resolved: the study file with all defaults, as plain JSON values.
    """

    def __init__(self, root: Path, row: StudyRow, resolved: dict[str, Any]) -> None:
        self.root = root
        self.row = row
        self.resolved = resolved
        self._decisions = Shelf(root / "decisions")
        self._selections = Shelf(root / "selection")
        self._openings = Shelf(root / "openings")
        self._attempts = Shelf(root / "attempts")
        self._records = Shelf(root / "finals")
        self._parsed: dict[str, Final] = {}

    @classmethod
    def create(cls, root: Path, record: StudyRow, study_toml: str, resolved: Mapping[str, Any]) -> Self:
        """Return the study in ``root``, begun now or before.

        Args:
            root: the folder; made if it is not there.
            record: the row of the study; of a study that was begun before, its own row stays.
            study_toml: the text of the study file, kept for people.
            resolved: what identifies the study, plain JSON values.

        Raises:
            ConfigError: if the study was begun with another ``resolved``; one problem per key that differs.
        """
        if not (root / _RECORD).exists():
            replace_atomically(root / "study.toml", study_toml.encode())
            # If somebody else began it a moment ago, theirs stays and is compared below.
            with contextlib.suppress(ConflictError):
                put_if_absent(root / _RECORD, seal({"row": to_json(record), "resolved": resolved}))
        study = cls.open(root)
        problems = study.differences(resolved)
        if problems:
            raise ConfigError(problems)
        return study

    @classmethod
    def open(cls, root: Path) -> Self:
        """Return the study in ``root``.

        Raises:
            InputError: if there is none.
            StudyError: if its ``study.json`` is torn or was altered.
        """
        path = root / _RECORD
        if not path.is_file():
            mend = "give the folder that `mmdistill run` printed"
            raise InputError([Problem(str(root), "no study here (there is no `study.json`)", mend)])
        body = unseal(path, path.read_bytes())
        try:
            return cls(root, from_json(StudyRow, body["row"]), body["resolved"])
        except (KeyError, ValueError) as error:
            raise StudyError(f"{path} was written by another version of mmdistill: {error}") from error

    def differences(self, resolved: Mapping[str, Any]) -> list[Problem]:
        """Return why a study with another ``resolved`` cannot continue this one: a problem per key."""
        return _changes(self.root, self.resolved, json.loads(json.dumps(pack(resolved))))

    def put_decision(self, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Commit a decision and return it; if one of that name is there, return that one: the first wins."""
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
        if latest is None or pack(latest) != json.loads(json.dumps(pack(value))):
            number += 1
            while not self._selections.put(str(number), value):
                number += 1
        return self._selections.path(str(number)).name, self._selections[str(number)]

    def selection(self) -> dict[str, Any] | None:
        """Return the latest frozen selection, or None before the first."""
        number = len(self._selections)
        return self._selections[str(number)] if number else None

    def put_opening(self, rows: Sequence[OpeningRow]) -> None:
        """Record that an order is about to read the test split; the first record of an order stays.

        Raises:
            ConflictError: if the order was recorded with other trials.
        """
        (order_id,) = {row.order_id for row in rows}
        self._openings.put(order_id, {"rows": [to_json(row) for row in rows]})
        recorded = {row["trial_id"] for row in self._openings[order_id]["rows"]}
        if recorded != {row.trial_id for row in rows}:
            path = self._openings.path(order_id)
            raise ConflictError(f"{path} records the trials {sorted(recorded)}, not those of this order")

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
        """Record how an attempt ended, ``complete`` or ``failed``; return False if it had ended before."""
        end = {"ended_at": datetime.now(UTC).isoformat(), "outcome": outcome, "error": error, "cpu_s": cpu_s}
        return self._attempts.put(f"{order_id}.{attempt}.end", end)

    def attempts(self) -> list[AttemptRow]:
        """Return all attempts, sorted by order and number; one that was killed has no end."""
        names = [name for name in self._attempts if name.endswith(".begin")]
        rows = [self._attempt(name) for name in names]
        return sorted(rows, key=lambda row: (row.order_id, row.attempt))

    def _attempt(self, name: str) -> AttemptRow:
        end = self._attempts.get(f"{name.removesuffix('.begin')}.end", {})
        return from_json(AttemptRow, {**self._attempts[name], **end})

    def put_final(self, final: Final) -> bool:
        """Commit the result of an order; return False, and change nothing, if it has one already.

        Curves and predictions are written first; the record in ``finals/`` is the commit mark.
        """
        if final.order_id in self._records:
            return False
        sides = write_sides(self.root, final)
        return self._records.put(final.order_id, final_body(final, sides))

    def final_ids(self) -> set[str]:
        """Return the orders that have a result."""
        return set(self._records)

    def final(self, order_id: str, *, whole: bool = False) -> Final:
        """Return the result of an order, with its curves and predictions if ``whole``.

        Raises:
            StudyError: if there is none, or if one of its files is torn, damaged or altered.
        """
        if order_id not in self._parsed:
            if order_id not in self._records:
                raise StudyError(f"{self.root} has no result of order {order_id!r}")
            path = self._records.path(order_id)
            self._parsed[order_id] = parsed_final(path, order_id, self._records[order_id])
        return self._completed(self._parsed[order_id]) if whole else self._parsed[order_id]

    def finals(self) -> Iterator[Final]:
        """Return the results of all orders, sorted by order, without curves and predictions."""
        return (self.final(order_id) for order_id in sorted(self._records))

    def side(self, final: Final, folder: str) -> pa.Table:
        """Return the ``curves`` or ``predictions`` of a result as a table, verified."""
        return read_side(self.root, final, folder)

    def _completed(self, final: Final) -> Final:
        epochs = [EpochRow(**row) for row in self.side(final, "curves").to_pylist()]
        predictions = [PredictionRow(**row) for row in self.side(final, "predictions").to_pylist()]
        return dataclasses.replace(final, epochs=epochs, predictions=predictions)


def _begin(row: AttemptRow) -> str:
    return f"{row.order_id}.{row.attempt}.begin"


def _changes(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Problem]:
    before, after = flattened(pack(old)), flattened(new)
    mend = "run with another --output, or restore the value"
    return [
        Problem(f"{root / _RECORD}: {key}", f"{_shown(before, key)} -> {_shown(after, key)}", mend)
        for key in sorted(set(before) | set(after))
        if key not in before or key not in after or before[key] != after[key]
    ]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "(absent)"
