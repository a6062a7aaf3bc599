"""The protocol of a study as a pure state machine: from what is on record to what comes next.

search (generations) -> top trials again on validation seeds -> frozen selection -> confirm on fresh pairs ->
test orders. It never looks at a clock, a worker or the cache, so the table of a study depends neither on how
many workers there were nor on how often it was killed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from mmdistill.pipeline.order import Lane, Order, StageRequest
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import Pipeline
from mmdistill.randomness import derive_seed
from mmdistill.records.finals import Final
from mmdistill.records.rows import TrialRow
from mmdistill.settings import Dimension, digest, edited
from mmdistill.studies.study import Arm, Study


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


class Pair(NamedTuple):
    """What makes results comparable: one fold, one seed."""

    phase: str
    index: int
    fold: int
    seed: int
    pair_id: str


class Cell(NamedTuple):
    """The unit that is searched: an arm in a fold (nested tuning)."""

    arm: Arm
    fold: int

    @property
    def label(self) -> str:
        """Return the name of the cell in decisions."""
        return f"{self.arm.name}~fold{self.fold}"


class StudyProtocol:
    """The rules of one study."""

    def __init__(self, study: Study, propose: Proposer) -> None:
        self.study, self._propose = study, propose
        self._shared: dict[str, list[Order]] = {}

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
        search, lanes = self.study.file.search, self.study.file.resources.lanes
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
        pair = self.pairs("search", cell.fold)[0]
        lanes = [self._lane(cell, pair, t["parameters"], t["number"]) for t in decision["trials"]]
        return self._orders("search", f"{cell.arm.name}: search, generation {g}", lanes)

    def _tuning(self, cell: Cell, state: State) -> list[Order]:
        found: list[Order] = []
        for g in range(len(self.generations)):
            found += self._generation(cell, g, state) or []
        past = self._past(cell, len(self.generations), state)
        return found if past is None else found + self._validation(cell, past)

    def _validation(self, cell: Cell, past: Sequence[Past]) -> list[Order]:
        best = sorted((trial for trial in past if trial.value is not None), key=lambda t: (t.value, t.number))
        lanes = [
            self._lane(cell, pair, trial.parameters, trial.number)
            for trial in best[: self.study.file.search.top]
            for pair in self.pairs("validate", cell.fold)
        ]
        return self._orders("validate", f"{cell.arm.name}: best trials on validation seeds", lanes)

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
            means = {n: sum(v) / len(v) for n, v in values.items() if None not in v}  # type: ignore[arg-type]
            if not means:
                winners.append({"arm": cell.arm.name, "fold": cell.fold, "number": None, "parameters": {}})
                continue
            number = min(means, key=lambda n: (means[n], n))
            parameters = next(dict(trial.parameters) for trial in past if trial.number == number)
            winner = {"arm": cell.arm.name, "fold": cell.fold, "number": number, "parameters": parameters}
            winners.append(winner | {"criterion": means[number], "candidates": {str(n): m for n, m in means.items()}})
        return {"winners": winners}

    def _of_winners(self, phase: str, selection: Mapping[str, Any]) -> list[Order]:
        """Return the orders of a phase; an arm of which every finalist failed has none."""
        winners = {(w["arm"], w["fold"]): w for w in selection["winners"]}
        orders = []
        for cell in self.cells:
            winner = winners[cell.arm.name, cell.fold]
            if winner["number"] is None:
                continue
            pairs = self.pairs("confirm", cell.fold)
            lanes = [self._lane(cell, pair, winner["parameters"], winner["number"], phase) for pair in pairs]
            orders += self._orders(phase, f"{cell.arm.name}: {phase}", lanes)
        return orders

    # Orders and what they wait for.

    def pairs(self, phase: str, fold: int) -> list[Pair]:
        """Return the pairs of a phase; test reads the confirmation's."""
        file = self.study.file
        count = {"search": 1, "validate": file.search.seeds, "confirm": file.confirm.pairs}[phase]
        return [
            Pair(
                phase,
                index,
                fold,
                derive_seed(file.seed, phase, index, fold),
                f"{self.study.dataset}~fold{fold}~{phase}{index}",
            )
            for index in range(count)
        ]

    def criterion(self, row: TrialRow) -> float | None:
        """Return what trials are ranked by, lower is better; None for one that failed or diverged."""
        name = "log_loss" if self.study.task == "classification" else "ccc"
        value = row.metrics.get(name)
        if row.status != "complete" or value is None:
            return None
        return value if self.study.task == "classification" else 1 - value

    def _lane(
        self, cell: Cell, pair: Pair, parameters: Mapping[str, Any], number: int, phase: str | None = None
    ) -> Lane:
        phase = phase or pair.phase
        changed = {**parameters, "seed": pair.seed, "fold": pair.fold}
        run = RunSettings.model_validate(edited(cell.arm.run.as_json(), changed))
        key = [self.study.file.name, cell.arm.name, phase, number, pair.index, pair.fold]
        if phase in {"confirm", "test"}:
            key[3] = "winner"
        return Lane.model_validate(
            {
                "trial_id": digest(key),
                "arm": cell.arm.name,
                "phase": phase,
                "number": number,
                "seed_index": None if phase == "search" else pair.index,
                "pair_id": pair.pair_id,
                "run": run,
                "parameters": dict(parameters),
            }
        )

    def _orders(self, kind: str, title: str, lanes: Sequence[Lane]) -> list[Order]:
        most = self.study.file.resources.lanes
        return [_order(kind, title, lanes[start : start + most]) for start in range(0, len(lanes), most)]

    def _ready(self, wanted: Sequence[Order], state: State) -> list[Order]:
        """Return the orders that can start now: those whose stages are done, and the stages of the others."""
        found: dict[str, Order] = {}
        lanes_ready = []
        for order in wanted:
            missing = [o for lane in order.lanes for o in self.stage_orders(lane) if o.order_id not in state.finals]
            if not missing:
                lanes_ready.append(order)
            waits_for_teachers = {id(o) for o in missing if o.stages[0].kind == "teacher"}
            for o in missing:
                if o.stages[0].kind == "teacher" or not self._has_missing_teacher(o, missing, waits_for_teachers):
                    found.setdefault(o.order_id, o)
        return [*found.values(), *lanes_ready]

    def _has_missing_teacher(self, outputs: Order, missing: Sequence[Order], teachers: set[int]) -> bool:
        needed = {self._stage(r, name).key for r in outputs.stages for name in r.run.networks()}
        given = {self._stage(r, r.name).key for o in missing if id(o) in teachers for r in o.stages}
        return bool(needed & given)

    def _stage(self, request: StageRequest, name: str) -> Any:
        return Pipeline(request.run, self.study.fingerprints[request.run.fold]).teacher(name)

    def stage_orders(self, lane: Lane) -> list[Order]:
        """Return the orders of the shared stages a lane reads, for every pair of its phase at once."""
        phase = "confirm" if lane.phase == "test" else lane.phase
        run = lane.run.model_copy(update={"seed": 0})
        pipeline = Pipeline(run, self.study.fingerprints[run.fold])
        if pipeline.outputs is None:
            return []
        signature = digest([phase, run.fold, pipeline.outputs.key])
        if signature not in self._shared:
            self._shared[signature] = list(self._stage_orders(run, phase))
        return self._shared[signature]

    def _stage_orders(self, run: RunSettings, phase: str) -> Iterator[Order]:
        pairs = self.pairs(phase, run.fold)
        runs = [run.model_copy(update={"seed": pair.seed}) for pair in pairs]
        most = self.study.file.resources.lanes
        for start in range(0, len(pairs), most):
            some = list(zip(pairs, runs, strict=True))[start : start + most]
            for name in run.networks():
                requests = [
                    StageRequest(kind="teacher", name=name, pair_id=pair.pair_id, run=r) for pair, r in some
                ]
                yield self._stages_order(f"teacher {name} for {phase}", requests)
            label = ",".join(run.networks())
            requests = [
                StageRequest(kind="teacher_outputs", name=label, pair_id=pair.pair_id, run=r) for pair, r in some
            ]
            yield self._stages_order(f"outputs of {label} for {phase}", requests)

    def _stages_order(self, title: str, requests: Sequence[StageRequest]) -> Order:
        keys = []
        for request in requests:
            pipeline = Pipeline(request.run, self.study.fingerprints[request.run.fold])
            stage = pipeline.teacher(request.name) if request.kind == "teacher" else pipeline.outputs
            keys.append(stage.key if stage is not None else "")
        name = digest([self.study.file.name, "stages", keys])
        return Order(order_id=f"stages-{name}", kind="stages", title=title, stages=tuple(requests))


def _order(kind: str, title: str, lanes: Sequence[Lane]) -> Order:
    name = digest([kind, *(lane.trial_id for lane in lanes)])
    return Order.model_validate(
        {"order_id": f"{kind}-{name}", "kind": kind, "title": title, "lanes": tuple(lanes)}
    )


def _open(orders: Sequence[Order], state: State) -> list[Order]:
    return [order for order in orders if order.order_id not in state.finals]
