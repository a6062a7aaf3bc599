"""First come, first served, and the processes that execute orders stay while they wait for the next."""

import time
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

# So long an order waits for the process that is started for it. Then it takes any that is free: there may be
# no room for its own, because a node was lost.
START_SECONDS = 10.0


class StandbyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Runs orders as they come, each in a process that is there already if one is free.

    Of the actors that have nothing to do Tune keeps one and ends the others, so that a study would pay for
    importing torch again wherever its orders wait for each other. And where short orders follow each other,
    one process would take all of them: Tune ends the one that is being started for an order as soon as
    another is free. There is no setting for either, so this reaches into Tune when the first order comes.
    """

    def __init__(self, processes: int) -> None:
        """Begin without room.

        Args:
            processes: most of them that may wait at once.
        """
        super().__init__()
        self._room = processes

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Make room when the first order comes; all reserve the same."""
        if not self._room:
            return
        room = tune_controller._actor_cache  # noqa: SLF001
        room.increase_max(trial.placement_group_factory, by=self._room)
        self._room = 0
        reuse = tune_controller._maybe_reuse_cached_actor  # noqa: SLF001
        # What is given here is a view of the controller, on which nothing can be set.
        reuse.__self__._maybe_reuse_cached_actor = patient(  # noqa: SLF001
            reuse,
            tune_controller._trial_to_actor,  # noqa: SLF001
        )


def patient(reuse: Callable[[Trial], bool], started_for: dict[Trial, Any]) -> Callable[[Trial], bool]:
    """Return ``reuse`` for orders that have waited long enough for a process of their own, or have none.

    Args:
        reuse: gives an order a process that is free, and tells whether there was one.
        started_for: the process of each order that has one, running or being started.
    """
    since: dict[Any, float] = {}

    def _reuse(trial: Trial) -> bool:
        own = started_for.get(trial)
        if own is not None:
            now = time.monotonic()
            if now - since.setdefault(own, now) < START_SECONDS:
                return False
            del since[own]
        return reuse(trial)

    return _reuse
