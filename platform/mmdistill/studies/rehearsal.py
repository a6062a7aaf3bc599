"""A study played through without training anything: what the protocol is going to ask for.

The rules of a study stand in its protocol alone; whatever a plan counts, it counts in this play.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmdistill.pipeline.execute import failed_final
from mmdistill.pipeline.order import Order
from mmdistill.records.finals import Final
from mmdistill.settings import Choice, Dimension
from mmdistill.studies.protocol import ProposalRequest, State, StudyProtocol
from mmdistill.studies.study import Study

NOTHING = State(decisions={}, finals={}, selections=())
_SCORES = {"log_loss": 1.0, "accuracy": 0.5, "ccc": 0.5}


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
    """Return the rows of an order as if every run of it had completed."""
    final = failed_final(order, "")
    trials = [replace(row, status="complete", metrics=_SCORES, error=None) for row in final.trials]
    return replace(final, trials=trials)
