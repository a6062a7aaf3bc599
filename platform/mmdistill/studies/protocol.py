"""The protocol of a study as a pure state machine: from what is on record to what comes next.

search (generations) -> top trials again on validation seeds -> frozen selection -> confirm on fresh pairs ->
test orders. It never looks at a clock, a worker or the cache, so the table of a study depends neither on how
many workers there were nor on how often it was killed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from mmdistill.pipeline.order import Lane, Order
from mmdistill.randomness import derive_seed
from mmdistill.records.finals import Final
from mmdistill.records.rows import TrialRow
from mmdistill.settings import Dimension
from mmdistill.studies.orders import Cell, OrderBook
from mmdistill.studies.study import Study


class Past(NamedTuple):
    """One earlier trial of an arm; no value if it failed or diverged."""

    number: int
    parameters: Mapping[str, Any]
    value: float | None


@dataclass(frozen=True)
class ProposalRequest:
    """What a proposer may know.

    Attributes:
        space: what this arm searches.
        columns: every searched path of the study, so that arms share their first points.
        past: trials of earlier generations, in order of their numbers.
        first: number of the first trial asked for.
        count: how many trials are asked for.
        seed: of this generation of this arm.
        shared_seed: of the points that all arms share.
        sampler: ``sobol``, ``tpe`` or ``random``.
    """

    space: Mapping[str, Dimension]
    columns: tuple[str, ...]
    past: Sequence[Past]
    first: int
    count: int
    seed: int
    shared_seed: int
    sampler: str


class Proposer(Protocol):
    """Makes proposals; the same request always gives the same proposals."""

    def __call__(self, request: ProposalRequest) -> list[dict[str, Any]]:
        """Return ``request.count`` sets of parameters by dotted path."""


@dataclass(frozen=True)
class State:
    """What is on record."""

    decisions: Mapping[str, Mapping[str, Any]]
    finals: Mapping[str, Final]
    selection: Mapping[str, Any] | None


class Decision(NamedTuple):
    """Proposals to be committed before anything of them starts."""

    name: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What comes next; decisions and the selection are committed first, then the protocol is asked again."""

    decisions: tuple[Decision, ...] = ()
    selection: dict[str, Any] | None = None
    orders: tuple[Order, ...] = ()
    is_finished: bool = False


class StudyProtocol:
    """The rules of one study."""

    def __init__(self, study: Study, propose: Proposer) -> None:
        self.study, self._propose = study, propose
        self.book = OrderBook(study)

    @cached_property
    def cells(self) -> list[Cell]:
        """Return every arm in every fold, in the order of the study file."""
        return [Cell(arm, fold) for fold in range(len(self.study.fingerprints)) for arm in self.study.arms]

    @cached_property
    def generations(self) -> list[range]:
        """Return the numbers of the trials of each generation."""
        search = self.study.file.search
        first = min(search.startup, search.trials)
        starts = [0, *range(first, search.trials, search.generation)]
        return [range(a, b) for a, b in zip(starts, [*starts[1:], search.trials], strict=True) if a < b]

    def next_step(self, state: State) -> Step:
        """Return what comes next."""
        decisions = [d for cell in self.cells for d in self._missing_decision(cell, state)]
        if decisions:
            return Step(decisions=tuple(decisions))
        wanted = [order for cell in self.cells for order in self._tuning(cell, state)]
        if not _open(wanted, state) and all(self._is_tuned(cell, state) for cell in self.cells):
            if state.selection is None:
                return Step(selection=self._selection(state))
            wanted = self._of_winners("confirm", state.selection)
            if not _open(wanted, state):
                wanted = self._of_winners("test", state.selection)
                if not _open(wanted, state):
                    return Step(is_finished=True)
        return Step(orders=tuple(self._ready(_open(wanted, state), state)))

    def total_orders(self) -> dict[str, int]:
        """Return how many orders with lanes each phase has; stages come on top."""
        search, lanes = self.study.file.search, self.study.lanes
        generations = sum(-(-len(generation) // lanes) for generation in self.generations)
        per_cell = {
            "search": generations,
            "validate": -(-min(search.top, search.trials) * search.seeds // lanes),
            "confirm": -(-self.study.file.confirm.pairs // lanes),
        }
        per_cell["test"] = per_cell["confirm"]
        return {phase: count * len(self.cells) for phase, count in per_cell.items()}

    # Search: generations, then the best again.

    def _missing_decision(self, cell: Cell, state: State) -> Iterator[Decision]:
        for g, numbers in enumerate(self.generations):
            name = f"{cell.label}~generation{g}"
            if name not in state.decisions:
                if g == 0 or self._past(cell, g, state) is not None:
                    yield Decision(name, self._proposals(cell, g, numbers, state))
                return

    def _proposals(self, cell: Cell, g: int, numbers: range, state: State) -> dict[str, Any]:
        seed, file = self.study.file.seed, self.study.file
        request = ProposalRequest(
            space=cell.arm.space,
            columns=tuple(sorted({path for arm in self.study.arms for path in arm.space})),
            past=self._past(cell, g, state) or [],
            first=numbers.start,
            count=len(numbers),
            seed=derive_seed(seed, "proposals", cell.arm.name, cell.fold, g),
            shared_seed=derive_seed(seed, "shared points", cell.fold),
            sampler="sobol" if g == 0 else file.search.sampler,
        )
        proposals = self._propose(request)
        trials = [{"number": n, "parameters": p} for n, p in zip(numbers, proposals, strict=True)]
        return {"arm": cell.arm.name, "fold": cell.fold, "generation": g, "trials": trials}

    def _past(self, cell: Cell, before: int, state: State) -> list[Past] | None:
        """Return the results of the generations before one, or None while some are missing."""
        past = []
        for g in range(before):
            orders = self._generation(cell, g, state)
            if orders is None or _open(orders, state):
                return None
            rows = [row for order in orders for row in state.finals[order.order_id].trials]
            past += [Past(row.number or 0, row.parameters, self.criterion(row)) for row in rows]
        return sorted(past, key=lambda trial: trial.number)

    def _generation(self, cell: Cell, g: int, state: State) -> list[Order] | None:
        decision = state.decisions.get(f"{cell.label}~generation{g}")
        if decision is None:
            return None
        pair = self.book.pairs("search", cell.fold)[0]
        lanes = [self.book.lane(cell, pair, t["parameters"], t["number"]) for t in decision["trials"]]
        return self.book.orders("search", f"{cell.arm.name}: search, generation {g}", lanes)

    def _tuning(self, cell: Cell, state: State) -> list[Order]:
        found: list[Order] = []
        for g in range(len(self.generations)):
            found += self._generation(cell, g, state) or []
        past = self._past(cell, len(self.generations), state)
        return found if past is None else found + self._validation(cell, past)

    def _validation(self, cell: Cell, past: Sequence[Past]) -> list[Order]:
        best = sorted((trial for trial in past if trial.value is not None), key=lambda t: (t.value, t.number))
        lanes = [
            self.book.lane(cell, pair, trial.parameters, trial.number)
            for trial in best[: self.study.file.search.top]
            for pair in self.book.pairs("validate", cell.fold)
        ]
        return self.book.orders("validate", f"{cell.arm.name}: best trials on validation seeds", lanes)

    def _is_tuned(self, cell: Cell, state: State) -> bool:
        past = self._past(cell, len(self.generations), state)
        return past is not None and not _open(self._validation(cell, past), state)

    # Selection, confirmation and test.

    def _selection(self, state: State) -> dict[str, Any]:
        """Return the winner of every cell: the lowest mean criterion over the validation seeds."""
        winners = []
        for cell in self.cells:
            past = self._past(cell, len(self.generations), state) or []
            values: dict[int, list[float | None]] = {}
            for order in self._validation(cell, past):
                for row in state.finals[order.order_id].trials:
                    values.setdefault(row.number or 0, []).append(self.criterion(row))
            known = {n: [v for v in found if v is not None] for n, found in values.items()}
            # A finalist that failed on any seed cannot win.
            means = {n: sum(v) / len(v) for n, v in known.items() if len(v) == len(values[n])}
            if not means:
                winners.append({"arm": cell.arm.name, "fold": cell.fold, "number": None, "parameters": {}})
                continue
            number = min(means, key=lambda n: (means[n], n))
            parameters = next(dict(trial.parameters) for trial in past if trial.number == number)
            winner = {"arm": cell.arm.name, "fold": cell.fold, "number": number, "parameters": parameters}
            candidates = {str(n): mean for n, mean in means.items()}
            winners.append(winner | {"criterion": means[number], "candidates": candidates})
        return {"winners": winners}

    def _of_winners(self, phase: str, selection: Mapping[str, Any]) -> list[Order]:
        """Return the orders of a phase; an arm of which every finalist failed has none."""
        winners = {(w["arm"], w["fold"]): w for w in selection["winners"]}
        orders = []
        for cell in self.cells:
            winner = winners[cell.arm.name, cell.fold]
            if winner["number"] is None:
                continue
            pairs = self.book.pairs("confirm", cell.fold)
            lanes = [
                self.book.lane(cell, pair, winner["parameters"], winner["number"], phase) for pair in pairs
            ]
            orders += self.book.orders(phase, f"{cell.arm.name}: {phase}", lanes)
        return orders

    # What the rows say, and what can start.

    def criterion(self, row: TrialRow) -> float | None:
        """Return what trials are ranked by, lower is better; None for one that failed or diverged."""
        name = "log_loss" if self.study.task == "classification" else "ccc"
        value = row.metrics.get(name)
        if row.status != "complete" or value is None or not math.isfinite(value):
            return None
        return value if self.study.task == "classification" else 1 - value

    def _ready(self, wanted: Sequence[Order], state: State) -> list[Order]:
        """Return the orders that can start now: those whose stages are done, and the stages of the others."""
        stages: dict[str, Order] = {}
        ready = []
        for order in wanted:
            missing = [o for lane in order.lanes for o in self._missing_stages(lane, state)]
            stages |= {o.order_id: o for o in missing if o.order_id not in stages}
            if not missing:
                ready.append(order)
        return [*stages.values(), *ready]

    def _missing_stages(self, lane: Lane, state: State) -> Iterator[Order]:
        """Return the stages a lane waits for that can start now."""
        for shared in self.book.shared_stages(lane):
            if shared.outputs.order_id not in state.finals:
                yield from _open(shared.teachers, state) or [shared.outputs]


def _open(orders: Sequence[Order], state: State) -> list[Order]:
    return [order for order in orders if order.order_id not in state.finals]
