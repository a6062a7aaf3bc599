"""What a study is going to run, what of it is there already, what it costs, what it can detect."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmdistill.errors import ConfigError
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.order import Order
from mmdistill.pipeline.pilot import pilot
from mmdistill.pipeline.prices import Price, Prices, device_kind, recorded_prices
from mmdistill.records.rows import PHASES
from mmdistill.records.study import StudyFolder
from mmdistill.studies.inventory import Inventory, Piece
from mmdistill.studies.lanes import Lanes, concurrent_here, lanes_on_record, planned_lanes
from mmdistill.studies.power import Power, powers_of
from mmdistill.studies.protocol import State
from mmdistill.studies.rehearsal import NOTHING, rehearse
from mmdistill.studies.session import arm_revisions
from mmdistill.studies.study import Arm, Study

# Seconds of a local Ray from its start to the first order and at its end, and of Ray's part in one order.
START_S, ORDER_S = 9.0, 0.03
# CPU seconds that trials of unknown trainings may take.
PILOT_S = 8.0


class ArmPlan(NamedTuple):
    """One arm.

    Attributes:
        dimensions: what is searched.
        trials: proposals in every fold that is searched.
        runs: all runs by phase, those on record included.
        cpu_s: CPU seconds that are left by phase, without shared stages; None where a price is unknown.
        note: which equal arms were merged into it, and whose settings it takes.
    """

    name: str
    recipe: str
    dimensions: tuple[str, ...]
    trials: int
    runs: Mapping[str, int]
    cpu_s: Mapping[str, float | None]
    note: str | None


class PhasePlan(NamedTuple):
    """One phase: how much of it there is, and what is left of it.

    Attributes:
        orders: orders left, those of shared stages included.
        runs: runs, and how many of them are on record.
        stages: shared stages, and how many of them are on record or in the cache.
        cpu_s: CPU seconds that are left, shared stages included; None where a price is unknown.
    """

    phase: str
    orders: int
    runs: int
    runs_recorded: int
    stages: int
    stages_there: int
    cpu_s: float | None


class Cost(NamedTuple):
    """What is left to pay.

    Attributes:
        cpu_s: CPU seconds; work of unknown price is not in it.
        gpu_s: seconds that GPUs are held, times their number; 0 without one.
        wall_s: estimate of the time on the wall, start of Ray included; None where a price is unknown.
        concurrent: orders at once that the estimate assumes.
        recorded: share of ``cpu_s`` from recorded timings; the rest is from a pilot.
        unknown: runs and stages without a price.
    """

    cpu_s: float
    gpu_s: float
    wall_s: float | None
    concurrent: int
    recorded: float
    unknown: int


class Plan(NamedTuple):
    """A study before it runs.

    Attributes:
        trainings: teachers trained, each with its out-of-fold copies, in the whole study.
        trainings_alone: how many they were if every run trained its own.
        is_exact: False where arms search which teachers they have, so that numbers of stages depend on it.
        power: what can be detected, once for all arms that share their folds.
    """

    study: str
    dataset: str
    output: str
    lanes: Lanes
    arms: tuple[ArmPlan, ...]
    phases: tuple[PhasePlan, ...]
    trainings: int
    trainings_alone: int
    is_exact: bool
    cost: Cost
    power: tuple[Power, ...]


def plan(study: Study, root: Path, cache: Path, *, may_pilot: bool = True) -> Plan:
    """Return what ``mmdistill run`` would do now; nothing is written.

    Args:
        study: the study.
        root: its folder, which need not be there; its siblings are searched for timings.
        cache: folder of the stage cache.
        may_pilot: whether to time a few steps of what was never timed here, and of cohorts where the study
            leaves their size open.

    Raises:
        ConfigError: if the folder holds another study, one problem per key that differs.
    """
    study, lanes = planned_lanes(study, lanes_on_record(root), may_measure=may_pilot)
    state, revisions = _on_record(study, root)
    done = list(state.finals.values())
    waves = rehearse(study, state, revisions)
    orders = [order for wave in waves for order in wave]
    inventory = Inventory(StageCache(cache), orders, done)
    pieces = {order.order_id: inventory.pieces(order) for order in orders}
    left = [piece for found in pieces.values() for piece in found]
    everything = [*inventory.recorded(done), *left]
    device = device_kind(study.file.resources.device)
    recorded = recorded_prices(root.parent, device)
    wanted = {piece.key for piece in left if piece.state == "left" and recorded.of(piece.key) is None}
    piloted = pilot(inventory.samples(orders, wanted, device), PILOT_S) if may_pilot and wanted else {}
    prices = _PriceList(recorded, Prices(piloted))
    return Plan(
        study=study.file.name,
        dataset=study.dataset,
        output=str(root),
        lanes=lanes,
        arms=tuple(_arm_plan(arm, study, everything, prices) for arm in study.arms),
        phases=tuple(_phase_plan(phase, orders, pieces, everything, prices) for phase in PHASES),
        trainings=sum(piece.kind == "teacher" for piece in everything),
        trainings_alone=sum(piece.networks for piece in everything),
        is_exact=not any(_searches_teachers(arm) for arm in study.arms),
        cost=_cost(study, waves, pieces, prices, device),
        power=powers_of(study, root.parent),
    )


@dataclass(frozen=True)
class _PriceList:
    recorded: Prices
    piloted: Prices

    def of(self, piece: Piece) -> Price | None:
        """Return what a piece costs, nothing if it is there; None if nobody knows."""
        if piece.state != "left":
            return Price(0.0, 0.0)
        found = self.recorded.of(piece.key) or self.piloted.of(piece.key)
        return found or self.piloted.guess(piece.key)

    def total(self, pieces: Iterable[Piece]) -> float | None:
        """Return CPU seconds; None if a price is unknown."""
        found = [self.of(piece) for piece in pieces]
        known = [price.cpu_s for price in found if price is not None]
        return sum(known) if len(known) == len(found) else None


def _on_record(study: Study, root: Path) -> tuple[State, dict[str, int]]:
    """Return the records of a study, and with which revision each arm came or would come."""
    if not (root / "study.json").exists():
        return NOTHING, {}
    folder = StudyFolder.open(root)
    problems = folder.differences(study.resolved())
    if problems:
        raise ConfigError(problems)
    finals = {final.order_id: final for final in folder.finals()}
    known, coming = arm_revisions(folder), folder.revision + 1
    revisions = {arm.name: known.get(arm.name, coming) for arm in study.arms}
    return State(folder.decisions(), finals, folder.selections()), revisions


def _searches_teachers(arm: Arm) -> bool:
    return any(path.startswith("teachers.") for path in arm.space)


def _arm_plan(arm: Arm, study: Study, pieces: Sequence[Piece], prices: _PriceList) -> ArmPlan:
    mine = [piece for piece in pieces if piece.arm == arm.name]
    notes = [arm.note, f"settings of {arm.frozen}, frozen" if arm.frozen else None]
    return ArmPlan(
        name=arm.name,
        recipe=arm.recipe,
        dimensions=tuple(arm.space),
        trials=0 if arm.frozen else study.file.search.trials,
        runs={phase: sum(piece.phase == phase for piece in mine) for phase in PHASES},
        cpu_s={phase: prices.total(piece for piece in mine if piece.phase == phase) for phase in PHASES},
        note="; ".join(note for note in notes if note) or None,
    )


def _phase_plan(
    phase: str,
    orders: Sequence[Order],
    pieces: Mapping[str, Sequence[Piece]],
    everything: Sequence[Piece],
    prices: _PriceList,
) -> PhasePlan:
    here = [piece for piece in everything if piece.phase == phase]
    runs, stages = [p for p in here if p.arm is not None], [p for p in here if p.arm is None]
    return PhasePlan(
        phase=phase,
        orders=sum(pieces[order.order_id][0].phase == phase for order in orders),
        runs=len(runs),
        runs_recorded=sum(piece.state == "recorded" for piece in runs),
        stages=len(stages),
        stages_there=sum(piece.state != "left" for piece in stages),
        cpu_s=prices.total(here),
    )


def _cost(
    study: Study,
    waves: Sequence[Sequence[Order]],
    pieces: Mapping[str, Sequence[Piece]],
    prices: _PriceList,
    device: str,
) -> Cost:
    left = [piece for wave in waves for order in wave for piece in pieces[order.order_id]]
    found = [(piece, prices.of(piece)) for piece in left if piece.state == "left"]
    known = {piece: price for piece, price in found if price is not None}
    counts = Counter(piece for piece, _ in found)
    cpu_s = sum(price.cpu_s * counts[piece] for piece, price in known.items())
    timed = sum(
        price.cpu_s * counts[piece]
        for piece, price in known.items()
        if prices.recorded.of(piece.key) is not None
    )
    unknown = sum(price is None for _, price in found)
    concurrent = concurrent_here(study.file.resources)
    wall_of = _wall_of(pieces, known)
    held = sum(wall_of(order) for wave in waves for order in wave)
    gpus = study.file.resources.gpus * max(study.file.resources.workers, 1) if device == "cuda" else 0.0
    wall_s = START_S * bool(waves) + sum(_wave_s([wall_of(o) for o in wave], concurrent) for wave in waves)
    return Cost(
        cpu_s=cpu_s,
        gpu_s=held * gpus,
        wall_s=None if unknown else wall_s,
        concurrent=concurrent,
        recorded=timed / cpu_s if cpu_s else 0.0,
        unknown=unknown,
    )


def _wall_of(pieces: Mapping[str, Sequence[Piece]], known: Mapping[Piece, Price]) -> Callable[[Order], float]:
    def seconds(order: Order) -> float:
        found = [known[piece].wall_s for piece in pieces[order.order_id] if piece in known]
        return ORDER_S + sum(found)

    return seconds


def _wave_s(seconds: Sequence[float], concurrent: int) -> float:
    """Return how long orders without an order among them take on some workers, at best."""
    return max(sum(seconds) / concurrent, max(seconds))
