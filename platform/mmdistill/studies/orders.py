"""The orders of a study: derived from decisions, never invented, so a restart finds the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmdistill.data.opening import DataSettings
from mmdistill.pipeline.order import Lane, Order, StageRequest
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.stages import Pipeline
from mmdistill.randomness import derive_seed
from mmdistill.settings import digest, edited
from mmdistill.studies.study import Arm, Study


@dataclass(frozen=True, slots=True)
class Pair:
    """What makes results comparable: one fold, one seed."""

    phase: str
    index: int
    fold: int
    seed: int
    pair_id: str


class Cell(NamedTuple):
    """An arm in a fold."""

    arm: Arm
    fold: int

    @property
    def label(self) -> str:
        """Return the name of the cell in decisions."""
        return f"{self.arm.name}~fold{self.fold}"


class Slot(NamedTuple):
    """One run before its settings are put together: cheap to have thousands of."""

    trial_id: str
    cell: Cell
    pair: Pair
    phase: str
    number: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Draft:
    """An order with runs before it is put together.

    Attributes:
        order_id: that of the order.
        kind: phase of its runs.
        title: one line for people.
        rank: where it stands among the orders of its arm.
        slots: its runs.
        pairs: of all runs that its shared stages are prepared for at once.
        opening: number of the selection that made it; 0 before the first.
    """

    order_id: str
    kind: str
    title: str
    rank: tuple[int, ...]
    slots: tuple[Slot, ...]
    pairs: tuple[Pair, ...]
    opening: int = 0

    @property
    def arm(self) -> str:
        """Return the name of the arm."""
        return self.slots[0].cell.arm.name


class SharedStages(NamedTuple):
    """Orders of the stages that some lanes read: the outputs wait for all the teachers."""

    teachers: tuple[Order, ...]
    outputs: Order


class OrderBook:
    """Derives orders, and remembers the shared stages it derived: every order of a phase asks for them."""

    def __init__(self, study: Study, first: Arm | None = None) -> None:
        """Begin with nothing derived.

        Args:
            study: the study.
            first: the arm whose pairs are called without their folds; by default the first of the study.
        """
        self.study, self._first = study, first or study.arms[0]
        self._stages: dict[str, tuple[SharedStages, ...]] = {}

    def pairs(self, phase: str, cell: Cell, indices: range) -> tuple[Pair, ...]:
        """Return some pairs of a phase; test reads the confirmation's."""
        seed, place = self.study.file.seed, f"{self._context(cell.arm.run.data)}~fold{cell.fold}"
        return tuple(
            Pair(
                phase,
                index,
                cell.fold,
                derive_seed(seed, phase, index, cell.fold),
                f"{place}~{phase}{index}",
            )
            for index in indices
        )

    def _context(self, data: DataSettings) -> str:
        """Return what arms that are compared pair by pair share; with the folds where they differ."""
        first = self._first.run.data
        name = self.study.dataset
        if (data.dataset, data.options) != (first.dataset, first.options):
            name += f"~{digest([data.dataset, data.options])}"
        if data.folds.identity != first.folds.identity:
            name += f"~{'-'.join(map(str, data.folds.identity))}"
        return name

    def slot(
        self, cell: Cell, pair: Pair, parameters: Mapping[str, Any], number: int, phase: str | None = None
    ) -> Slot:
        """Return the run of a cell on a pair.

        Args:
            cell: arm and fold.
            pair: seed; also the phase, unless one is given.
            parameters: by dotted path, laid over the arm's settings.
            number: of the proposal they come from.
            phase: ``test`` runs on the pairs of the confirmation.
        """
        phase = phase or pair.phase
        # A winner is called by its pair alone: which proposal won is a result, not an identity.
        which = "winner" if phase in {"confirm", "test"} else number
        trial_id = digest([self.study.file.name, cell.arm.name, phase, which, pair.index, pair.fold])
        return Slot(trial_id, cell, pair, phase, number, parameters)

    def drafts(
        self,
        title: str,
        rank: tuple[int, ...],
        slots: Sequence[Slot],
        pairs: Sequence[Pair],
        opening: int = 0,
    ) -> list[Draft]:
        """Return the orders that carry some runs, as many in each as the study allows."""
        most, found = self.study.lanes, []
        for start in range(0, len(slots), most):
            some = tuple(slots[start : start + most])
            kind = some[0].phase
            name = f"{kind}-{digest([kind, *(slot.trial_id for slot in some)])}"
            found.append(Draft(name, kind, title, (*rank, start), some, tuple(pairs), opening))
        return found

    def order(self, draft: Draft) -> Order:
        """Return an order put together."""
        return Order.model_validate(
            {
                "order_id": draft.order_id,
                "kind": draft.kind,
                "title": draft.title,
                "lanes": tuple(_lane(slot) for slot in draft.slots),
                "race": self.study.file.search.racing if draft.kind == "search" else None,
            }
        )

    def shared_stages(self, draft: Draft) -> tuple[SharedStages, ...]:
        """Return the stages the runs of an order read, for all its pairs at once."""
        found: dict[str, SharedStages] = {}
        # Repetitions of a proposal read the same stages, but for the seed.
        runs = {slot.number: slot for slot in draft.slots}
        for slot in runs.values():
            for shared in self._shared_stages(_run(slot), draft):
                found[shared.outputs.order_id] = shared
        return tuple(found.values())

    def _shared_stages(self, run: RunSettings, draft: Draft) -> tuple[SharedStages, ...]:
        run = run.model_copy(update={"seed": 0})
        outputs = self._pipeline(run).outputs
        if outputs is None:
            return ()
        phase = "confirm" if draft.kind == "test" else draft.kind
        keys = [stage.key for stage in (outputs, self._pipeline(run).first_network) if stage is not None]
        signature = digest([phase, run.fold, draft.pairs[0].index, len(draft.pairs), keys])
        if signature not in self._stages:
            self._stages[signature] = tuple(self._shared(run, phase, draft.pairs))
        return self._stages[signature]

    def _shared(self, run: RunSettings, phase: str, pairs: Sequence[Pair]) -> Iterator[SharedStages]:
        most = self.study.lanes
        for start in range(0, len(pairs), most):
            some = pairs[start : start + most]
            names = list(canonical(run).frozen_networks())
            teachers = [self._stages_order(run, phase, "teacher", name, some) for name in names]
            first = run.first_network()
            if first is not None:
                teachers.append(self._stages_order(first, phase, "teacher", "student", some))
            label = ",".join(names)
            yield SharedStages(
                tuple(teachers), self._stages_order(run, phase, "teacher_outputs", label, some)
            )

    def _stages_order(
        self, run: RunSettings, phase: str, kind: str, name: str, pairs: Sequence[Pair]
    ) -> Order:
        runs = [run.model_copy(update={"seed": pair.seed}) for pair in pairs]
        pipelines = [self._pipeline(one) for one in runs]
        stages = [p.teacher(name) if kind == "teacher" else p.outputs for p in pipelines]
        keys = [stage.key for stage in stages if stage is not None]
        requests = [
            StageRequest.model_validate({"kind": kind, "name": name, "pair_id": pair.pair_id, "run": one})
            for pair, one in zip(pairs, runs, strict=True)
        ]
        title = f"teacher {name} for {phase}" if kind == "teacher" else f"outputs of {name} for {phase}"
        identity = digest([self.study.file.name, "stages", keys])
        return Order(order_id=f"stages-{identity}", kind="stages", title=title, stages=tuple(requests))

    def _pipeline(self, run: RunSettings) -> Pipeline:
        return Pipeline(run, self.study.fingerprint(run.data, run.fold))


def _run(slot: Slot) -> RunSettings:
    changed = {**slot.parameters, "seed": slot.pair.seed, "fold": slot.pair.fold}
    return RunSettings.model_validate(edited(slot.cell.arm.run.as_json(), changed))


def _lane(slot: Slot) -> Lane:
    return Lane.model_validate(
        {
            "trial_id": slot.trial_id,
            "arm": slot.cell.arm.name,
            "phase": slot.phase,
            "number": slot.number,
            "seed_index": None if slot.phase == "search" else slot.pair.index,
            "pair_id": slot.pair.pair_id,
            "run": _run(slot),
            "parameters": dict(slot.parameters),
        }
    )
