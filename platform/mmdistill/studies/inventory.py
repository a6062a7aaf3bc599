"""The lanes and stages of a study: which are on record, which in the cache, which are left."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.costs import Sizes, kind_of, order_keys, sizes_of
from mmdistill.pipeline.fold import Fold, opened
from mmdistill.pipeline.order import Order, StageRequest
from mmdistill.pipeline.pilot import Sample
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.stages import Pipeline, Stage
from mmdistill.records.finals import Final


class Piece(NamedTuple):
    """One lane of an order, or one shared stage.

    Attributes:
        kind: ``student``, ``test``, ``teacher``, ``alignment`` or ``teacher_outputs``.
        phase: search, validate, confirm or test; of a stage, the phase that reads it.
        arm: None for a shared stage.
        state: ``recorded`` in the study's folder, ``cached`` as a stage, or ``left`` to be computed.
        key: what decides its cost; empty for one on record.
        networks: teachers it would have to train for itself.
    """

    kind: str
    phase: str
    arm: str | None
    state: Literal["recorded", "cached", "left"]
    key: str = ""
    networks: int = 0


class Inventory:
    """The lanes and stages of a study, with what the data and the cache say about them."""

    def __init__(self, cache: StageCache, orders: Sequence[Order], done: Sequence[Final]) -> None:
        self._cache = cache
        self._sizes: dict[str, Sizes] = {}
        # A stage has no phase of its own: its pair has. What is confirmed is read again by the test.
        lanes: list[tuple[str, str]] = [
            (lane.pair_id, lane.phase) for order in orders for lane in order.lanes
        ]
        lanes += [(row.pair_id, row.phase) for final in done for row in final.trials]
        self._phases = {pair: phase for pair, phase in lanes if phase != "test"}

    def fold(self, run: RunSettings, device: str = "cpu") -> Fold:
        """Return the data of a run."""
        return opened(run.data, run.fold, with_test=False, device=device)

    def pieces(self, order: Order) -> list[Piece]:
        """Return the lanes or stages of an order that is left."""
        keys = order_keys(order, self._sizes_of(order))
        if order.kind != "stages":
            networks = [0 if order.kind == "test" else len(_taught(lane.run)) for lane in order.lanes]
            kind = "test" if order.kind == "test" else "student"
            return [
                Piece(kind, lane.phase, lane.arm, "left", key, count)
                for lane, key, count in zip(order.lanes, keys, networks, strict=True)
            ]
        stages = [(request, stage) for request in order.stages for stage in self._stages(request)]
        return [
            Piece(
                kind_of(key),
                self._phases.get(request.pair_id, "search"),
                None,
                "cached" if self._cache.holds(stage) else "left",
                key,
            )
            for (request, stage), key in zip(stages, keys, strict=True)
        ]

    def recorded(self, done: Sequence[Final]) -> list[Piece]:
        """Return the lanes and stages of finished orders."""
        found = []
        for final in done:
            for row in final.trials:
                is_test = row.phase == "test"
                networks = 0 if is_test else len(_taught(RunSettings.model_validate_json(row.config_json)))
                kind = "test" if is_test else "student"
                found.append(Piece(kind, row.phase, row.arm, "recorded", "", networks))
            for stage in () if final.trials else final.stages:
                phase = self._phases.get(stage.pair_id, "search")
                found.append(Piece(stage.stage, phase, None, "recorded"))
        return found

    def samples(self, orders: Sequence[Order], keys: set[str], device: str) -> dict[str, Sample]:
        """Return for each key an order that needs it."""
        found: dict[str, Sample] = {}
        for order in orders:
            for key in set(order_keys(order, self._sizes_of(order))) & keys - set(found):
                found[key] = Sample(order, self.fold(_first_run(order), device))
        return found

    def _sizes_of(self, order: Order) -> Sizes:
        run = _first_run(order)
        context = f"{run.data.digest}~{run.fold}"
        if context not in self._sizes:
            self._sizes[context] = sizes_of(self.fold(run), run)
        return self._sizes[context]

    def _stages(self, request: StageRequest) -> list[Stage]:
        pipeline = Pipeline(request.run, self.fold(request.run).arrays.fingerprint)
        if request.kind == "teacher":
            return [pipeline.teacher(request.name)]
        return [stage for stage in (pipeline.alignment, pipeline.outputs) if stage is not None]


def _first_run(order: Order) -> RunSettings:
    return (order.lanes or order.stages)[0].run


def _taught(run: RunSettings) -> tuple[str, ...]:
    """Return the networks a run would train before its student."""
    taught = tuple(run.frozen_networks()) if run.is_taught() else ()
    first = ("student",) if run.first_network() is not None else ()
    return (*first, *taught)
