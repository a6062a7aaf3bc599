"""The orders of a study: derived from decisions, never invented, so a restart finds the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmdistill.pipeline.order import Lane, Order, StageRequest
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import Pipeline
from mmdistill.randomness import derive_seed
from mmdistill.settings import digest, edited
from mmdistill.studies.study import Arm, Study


@dataclass(frozen=True)
class Pair:
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


class SharedStages(NamedTuple):
    """Orders of the stages that some lanes read: the outputs wait for all the teachers."""

    teachers: tuple[Order, ...]
    outputs: Order


class OrderBook:
    """Derives orders, and remembers what it derived: a protocol asks for all of them at every step."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._lanes: dict[str, Lane] = {}
        self._orders: dict[str, Order] = {}
        self._stages: dict[str, tuple[SharedStages, ...]] = {}
        self._stages_of: dict[str, tuple[SharedStages, ...]] = {}

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

    def lane(
        self, cell: Cell, pair: Pair, parameters: Mapping[str, Any], number: int, phase: str | None = None
    ) -> Lane:
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
        known = self._lanes.get(trial_id)
        if known is None or known.parameters != dict(parameters):
            changed = {**parameters, "seed": pair.seed, "fold": pair.fold}
            fields = {
                "trial_id": trial_id,
                "arm": cell.arm.name,
                "phase": phase,
                "number": number,
                "seed_index": None if phase == "search" else pair.index,
                "pair_id": pair.pair_id,
                "run": RunSettings.model_validate(edited(cell.arm.run.as_json(), changed)),
                "parameters": dict(parameters),
            }
            known = self._lanes[trial_id] = Lane.model_validate(fields)
            self._stages_of.pop(trial_id, None)
        return known

    def orders(self, kind: str, title: str, lanes: Sequence[Lane]) -> list[Order]:
        """Return the orders that carry some lanes, as many lanes in each as the study allows."""
        most = self.study.lanes
        return [self._order(kind, title, lanes[n : n + most]) for n in range(0, len(lanes), most)]

    def _order(self, kind: str, title: str, lanes: Sequence[Lane]) -> Order:
        name = f"{kind}-{digest([kind, *(lane.trial_id for lane in lanes)])}"
        if name not in self._orders or self._orders[name].lanes != tuple(lanes):
            order = {"order_id": name, "kind": kind, "title": title, "lanes": tuple(lanes)}
            self._orders[name] = Order.model_validate(order)
        return self._orders[name]

    def shared_stages(self, lane: Lane) -> tuple[SharedStages, ...]:
        """Return the stages a lane reads, for every pair of its phase at once."""
        if lane.trial_id not in self._stages_of:
            phase = "confirm" if lane.phase == "test" else lane.phase
            run = lane.run.model_copy(update={"seed": 0})
            outputs = self._pipeline(run).outputs
            signature = "none" if outputs is None else digest([phase, run.fold, outputs.key])
            if signature not in self._stages:
                self._stages[signature] = () if outputs is None else tuple(self._shared(run, phase))
            self._stages_of[lane.trial_id] = self._stages[signature]
        return self._stages_of[lane.trial_id]

    def _shared(self, run: RunSettings, phase: str) -> Iterator[SharedStages]:
        pairs, most = self.pairs(phase, run.fold), self.study.lanes
        for start in range(0, len(pairs), most):
            some = pairs[start : start + most]
            teachers = [self._stages_order(run, phase, "teacher", name, some) for name in run.networks()]
            label = ",".join(run.networks())
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
        return Pipeline(run, self.study.fingerprints[run.fold])
