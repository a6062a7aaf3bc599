"""Orders: what one Tune trial executes."""

from typing import Any, Literal

from pydantic import Field

from mmdistill.pipeline.run import RunSettings
from mmdistill.settings import Settings
from mmdistill.training.race import RaceSettings

Phase = Literal["search", "validate", "confirm", "test"]


class Lane(Settings):
    """One run inside an order, and where its result belongs."""

    trial_id: str
    arm: str
    phase: Phase
    number: int | None = None
    seed_index: int | None = None
    pair_id: str
    run: RunSettings
    parameters: dict[str, Any] = Field(default_factory=dict)


class StageRequest(Settings):
    """A shared stage to have ready: a teacher by its network's name, or the outputs of a whole set."""

    kind: Literal["teacher", "teacher_outputs"]
    name: str
    pair_id: str
    run: RunSettings


class Order(Settings):
    """Some lanes of one phase, or a set of shared stages.

    Attributes:
        order_id: derived from the content, so that a restart finds the same order.
        kind: ``stages`` or the phase of the lanes.
        title: one line for people.
        race: how its lanes race; only in a search.
    """

    order_id: str
    kind: Literal["stages", "search", "validate", "confirm", "test"]
    title: str
    lanes: tuple[Lane, ...] = ()
    stages: tuple[StageRequest, ...] = ()
    race: RaceSettings | None = None
