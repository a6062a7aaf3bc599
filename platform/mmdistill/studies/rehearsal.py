"""A study played through without training anything: what the protocol is going to ask for.

The rules of a study stand in its protocol alone; whatever a plan counts, it counts in this play.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mmdistill.pipeline.order import Lane, Order
from mmdistill.records.finals import Final
from mmdistill.records.rows import TrialRow
from mmdistill.settings import Choice, Dimension
from mmdistill.studies.protocol import ProposalRequest, State, StudyProtocol
from mmdistill.studies.study import Study

NOTHING = State(decisions={}, finals={}, selections=())
_SCORES = {"log_loss": 1.0, "accuracy": 0.5, "ccc": 0.5}
_TIME = datetime.fromtimestamp(0, UTC)


def rehearse(
    study: Study, state: State = NOTHING, revisions: Mapping[str, int] | None = None
) -> list[tuple[Order, ...]]:
    """Return the orders that are left after ``state``, in waves: those of one can run side by side.

    Every proposal is the middle of its space, alternatives in turn, and every run completes. So the numbers
    are exact unless arms search which teachers they have, or runs diverge.
    """
    protocol = StudyProtocol(study, middle_points, revisions)
    decisions, finals, selections = dict(state.decisions), dict(state.finals), list(state.selections)
    waves: list[tuple[Order, ...]] = []
    while True:
        step = protocol.next_step(State(decisions, finals, selections))
        if step.is_finished:
            return waves
        decisions |= {decision.name: decision.value for decision in step.decisions}
        selections += [] if step.selection is None else [step.selection]
        if step.orders:
            waves.append(step.orders)
            finals |= {order.order_id: _made_up(order) for order in step.orders}
        elif not step.decisions and step.selection is None:
            raise RuntimeError("nothing is running and nothing is ready: the protocol is stuck")


def middle_points(request: ProposalRequest) -> list[dict[str, Any]]:
    """Return the middle of the space for every trial that is asked for."""
    numbers = range(request.first, request.first + request.count)
    return [_middle(request.space, number) for number in numbers]


def _middle(space: Mapping[str, Dimension], number: int) -> dict[str, Any]:
    return {
        path: dimension.choice[number % len(dimension.choice)]
        if isinstance(dimension, Choice)
        else dimension.at(0.5)
        for path, dimension in space.items()
    }


def _made_up(order: Order) -> Final:
    return Final(order.order_id, order.kind, trials=[_row(order, lane) for lane in order.lanes])


def _row(order: Order, lane: Lane) -> TrialRow:
    return TrialRow(
        trial_id=lane.trial_id,
        order_id=order.order_id,
        arm=lane.arm,
        phase=lane.phase,
        number=lane.number,
        seed_index=lane.seed_index,
        seed=lane.run.seed,
        fold=lane.run.fold,
        pair_id=lane.pair_id,
        status="complete",
        split="test" if order.kind == "test" else "validation",
        metrics=_SCORES,
        parameters=lane.parameters,
        config_json="",
        run_digest="",
        dataset=lane.run.data.dataset,
        teachers=list(lane.run.networks()),
        selection={},
        cpu_s=0.0,
        stage_cpu_s=0.0,
        lanes=len(order.lanes),
        device="",
        host="",
        started_at=_TIME,
        ended_at=_TIME,
    )
