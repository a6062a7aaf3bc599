"""First come, first served, and the processes that execute orders stay while they wait for the next."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class StandbyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Runs orders as they come, each in a process that is there already if one is free.

    Of the actors that have nothing to do Tune keeps one and ends the others, so that a study would pay for
    importing torch again wherever its orders wait for each other. There is no setting for it, but the cache
    of actors has a size, and the first order tells what to keep room for.
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
        room = tune_controller._actor_cache  # noqa: SLF001
        room.increase_max(trial.placement_group_factory, by=self._room)
        self._room = 0
