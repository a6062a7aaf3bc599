"""A study in progress: the protocol on one side, the folder on the other.

Both executors use it, Ray's and the one in process: ask what is ready, execute, tell that an order ended.
"""

import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmdistill.pipeline.execute import failed_final
from mmdistill.pipeline.order import Order
from mmdistill.records.events import write_experiment_events, write_trial_events
from mmdistill.records.finals import Final
from mmdistill.records.rows import EpochRow, OpeningRow, TrialRow
from mmdistill.records.study import StudyFolder
from mmdistill.settings import Choice
from mmdistill.studies.protocol import Proposer, State, StudyProtocol
from mmdistill.studies.study import Study

# A failed order is tried again this often before it is written down as failed.
RETRIES = 2
SHOWN_METRICS = ("accuracy", "log_loss", "ccc", "ace", "macro_f1")


class Session:
    """Commits decisions, hands out orders, keeps the TensorBoard tree up to date."""

    def __init__(self, study: Study, folder: StudyFolder, propose: Proposer) -> None:
        self.study, self.folder = study, folder
        self.protocol = StudyProtocol(study, propose)
        self.executed: list[str] = []
        self.failed: list[str] = []
        self._step: tuple[int, tuple[Order, ...], bool] | None = None

    @property
    def tensorboard(self) -> Path:
        """Return the root of the TensorBoard tree."""
        return self.folder.root / "tensorboard"

    @property
    def is_finished(self) -> bool:
        """Return whether nothing is left to do."""
        return self._current()[1]

    def ready(self, in_flight: Collection[str]) -> list[Order]:
        """Return the orders that can start now and are not in flight, most urgent first.

        Decisions and the selection they come from are durable before this returns, and so is the entry in
        the ledger of test openings for every test order among them.
        """
        orders = [order for order in self._current()[0] if order.order_id not in in_flight]
        for order in orders:
            if order.kind == "test":
                self._open_test(order)
        return orders

    def ended(self, order: Order, outcome: str) -> None:
        """Take note that an order ended; one that failed too often is written down as failed."""
        self.executed.append(order.order_id)
        if outcome == "failed":
            attempts = [a for a in self.folder.attempts() if a.order_id == order.order_id]
            if len(attempts) > RETRIES:
                reason = next((a.error for a in reversed(attempts) if a.error), "no reason recorded")
                self.folder.put_final(failed_final(order, reason))
                self.failed.append(order.title)
        self._step = None
        if order.order_id in self.folder.final_ids() and order.lanes:
            self._show(self.folder.final(order.order_id, whole=True))

    def show_missing(self) -> None:
        """Write the TensorBoard files that a killed driver left out; they are a view, never the truth."""
        spaces = {p: d for arm in self.study.arms for p, d in arm.space.items()}
        domains = {p: _domain(d) for p, d in sorted(spaces.items())}
        if not any(self.tensorboard.glob("*tfevents*")):
            write_experiment_events(self.tensorboard, domains, list(SHOWN_METRICS))
        for final in list(self.folder.finals()):
            if final.trials and not all(self._place(row).is_dir() for row in final.trials):
                self._show(self.folder.final(final.order_id, whole=True))

    def _current(self) -> tuple[tuple[Order, ...], bool]:
        finals = self.folder.final_ids()
        if self._step is None or self._step[0] != len(finals):
            step = self.protocol.next_step(self._state())
            while step.decisions or step.selection is not None:
                for decision in step.decisions:
                    self.folder.put_decision(decision.name, decision.value)
                if step.selection is not None:
                    self.folder.put_selection(step.selection)
                step = self.protocol.next_step(self._state())
            self._step = (len(finals), step.orders, step.is_finished)
        return self._step[1], self._step[2]

    def _state(self) -> State:
        finals = {final.order_id: final for final in self.folder.finals()}
        return State(self.folder.decisions(), finals, self.folder.selection())

    def _open_test(self, order: Order) -> None:
        now = datetime.now(UTC)
        rows = [
            OpeningRow(
                opening=1,
                opened_at=now,
                arm=lane.arm,
                fold=lane.run.fold,
                seed_index=lane.seed_index or 0,
                trial_id=lane.trial_id,
                selection="1.json",
                order_id=order.order_id,
            )
            for lane in order.lanes
        ]
        self.folder.put_opening(rows)

    def _place(self, row: TrialRow) -> Path:
        number = row.seed_index if row.phase in {"confirm", "test"} else row.number
        name = f"{row.phase}-{number:03d}" + (f"-seed{row.seed_index}" if row.phase == "validate" else "")
        fold = f"-fold{row.fold}" if len(self.study.fingerprints) > 1 else ""
        return self.tensorboard / row.arm / f"{name}{fold}"

    def _show(self, final: Final) -> None:
        curves: dict[str, list[EpochRow]] = {}
        for row in final.epochs:
            curves.setdefault(row.trial_id, []).append(row)
        for trial in final.trials:
            write_trial_events(
                self._place(trial),
                hparams=_hparams(trial),
                metrics={n: v for n, v in trial.metrics.items() if n in SHOWN_METRICS},
                curves=_points(curves.get(trial.trial_id, [])),
                trial_id=trial.trial_id,
            )


def _points(rows: Iterable[EpochRow]) -> list[tuple[str, int, float]]:
    return [(row.name, row.epoch, row.value) for row in rows]


def _hparams(trial: TrialRow) -> dict[str, Any]:
    plain = {
        p: v if isinstance(v, int | float | str | bool) else json.dumps(v)
        for p, v in trial.parameters.items()
    }
    return {"arm": trial.arm, "phase": trial.phase} | plain


def _domain(dimension: Any) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {"choice": [json.dumps(option) for option in dimension.choice]}
    return {"low": dimension.low, "high": dimension.high}
