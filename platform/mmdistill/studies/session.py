"""A study in progress: the protocol on one side, the folder on the other.

Both executors use it, Ray's and the one in process: ask what is ready, execute, tell that an order ended.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmdistill.errors import StudyError
from mmdistill.pipeline.execute import failed_final
from mmdistill.pipeline.order import Order
from mmdistill.records.events import write_experiment_events, write_trial_events
from mmdistill.records.finals import Final
from mmdistill.records.rows import PHASES, EpochRow, OpeningRow, TrialRow
from mmdistill.records.study import StudyFolder
from mmdistill.settings import Choice, Dimension, Range
from mmdistill.studies.protocol import Proposer, State, Step, StudyProtocol
from mmdistill.studies.study import Study
from mmdistill.terms.base import Task

# A failed order is tried again this often before it is written down as failed.
RETRIES = 2
DIED = "its process died, perhaps out of memory"
GIVEN_UP = "given up"
SHOWN_METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "log_loss", "ace", "macro_f1", "worst_class_accuracy"),
    "regression": ("ccc", "rmse"),
}


class Session:
    """Commits decisions, hands out orders, keeps the TensorBoard tree up to date."""

    def __init__(self, study: Study, folder: StudyFolder, propose: Proposer) -> None:
        self.study, self.folder = study, folder
        self.protocol = StudyProtocol(study, propose, arm_revisions(folder))
        self.failed: list[str] = []
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
        return self.folder.root / "tensorboard"

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
                self._show(self.folder.final(order.order_id, whole=True))
        return outcome

    def _disk(self, order: Order) -> str:
        reason = why_failed(self.folder, order.order_id, "it could not even be noted what failed")
        return (
            f"{self.folder.root}: the disk failed {order.title!r} ({reason}); nothing finished is lost, "
            "and once the disk is mended the same command resumes"
        )

    def show_missing(self) -> None:
        """Write the TensorBoard files that a killed driver left out; they are a view, never the truth."""
        if not any(self.tensorboard.glob("*tfevents*")):
            metrics = SHOWN_METRICS[self.study.task]
            write_experiment_events(self.tensorboard, _domains(self.study), metrics, _charts(self.study))
        for final in list(self.folder.finals()):
            if final.trials and not all(self._place(row).is_dir() for row in final.trials):
                self._show(self.folder.final(final.order_id, whole=True))

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

    def _place(self, trial: TrialRow) -> Path:
        repetition = {
            "validate": f"-seed{trial.seed_index}",
            "confirm": f"-{trial.seed_index or 0:03d}",
            "test": f"-{trial.seed_index or 0:03d}",
        }.get(trial.phase, "")
        return self.tensorboard / f"{_proposal(trial)}{repetition}{self._fold(trial)}"

    def _fold(self, trial: TrialRow) -> str:
        folds = max(len(arm.run.data.folds.opened_folds) for arm in self.study.arms)
        return f"-fold{trial.fold}" if folds > 1 else ""

    def _show(self, final: Final) -> None:
        shown = SHOWN_METRICS[self.study.task]
        curves: dict[str, list[EpochRow]] = {}
        for row in final.epochs:
            curves.setdefault(row.trial_id, []).append(row)
        for trial in final.trials:
            write_trial_events(
                self._place(trial),
                hparams={"arm": trial.arm, "phase": trial.phase} | trial.parameters,
                metrics={name: trial.metrics[name] for name in shown if name in trial.metrics},
                curves=_points(curves.get(trial.trial_id, [])),
                row=f"{_proposal(trial)}{self._fold(trial)}",
            )


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


def _proposal(trial: TrialRow) -> str:
    """Return what names a trial without its seed, so that the repetitions of a proposal share it."""
    number = f"-{trial.number:03d}" if trial.phase in {"search", "validate"} else ""
    return f"{trial.arm}/{trial.phase}{number}"


def _points(rows: Iterable[EpochRow]) -> list[tuple[str, int, float]]:
    return [(row.name, row.epoch, row.value) for row in rows]


def _charts(study: Study) -> dict[str, tuple[str, ...]]:
    """Return what is shown together: how a teacher that trains along scores and what it still knows."""
    if not any(arm.run.active_terms() and arm.run.trains_teacher() for arm in study.arms):
        return {}
    score = "ccc" if study.task == "regression" else "accuracy"
    return {"teacher that trains along": (f"validation/teacher_{score}", "validation/teacher_auxiliary_r2")}


def _domains(study: Study) -> dict[str, dict[str, Any]]:
    """Return the columns of the HParams page: what tells its rows apart, and what any arm searches."""
    spaces: dict[str, list[Dimension]] = {}
    for arm in study.arms:
        for path, dimension in arm.space.items():
            spaces.setdefault(path, []).append(dimension)
    names = {"arm": [arm.name for arm in study.arms], "phase": list(PHASES)}
    return {column: {"choice": options} for column, options in names.items()} | {
        path: _united(dimensions) for path, dimensions in spaces.items()
    }


def _united(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """Return one domain with all values of one setting: arms may search different parts of it."""
    options = [option for found in dimensions if isinstance(found, Choice) for option in found.choice]
    ends = [end for found in dimensions if isinstance(found, Range) for end in (found.low, found.high)]
    if not ends:
        return {"choice": list({json.dumps(option, sort_keys=True): option for option in options}.values())}
    ends += [float(option) for option in options if isinstance(option, int | float)]
    return {"low": min(ends), "high": max(ends)}
