"""The adapter between Tune and a study in progress: Tune asks, the session answers."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from mmdistill.cluster.progress import Event, Listener
from mmdistill.cluster.watchdog import note_hung
from mmdistill.pipeline.order import Order
from mmdistill.studies.session import Session

# How often an order is started again whose process died. Not left to Tune, which may see the end of one
# process twice and then gives the trial up at once.
RELAUNCHES = 2


class OrderSearcher(Searcher):  # type: ignore[misc]
    """Hands out orders as Tune trials, each when its inputs are there.

    Attributes:
        failure: what went wrong here; Tune passes on no more than its text.
    """

    def __init__(self, session: Session, folder: Path, listen: Listener) -> None:
        """Wrap a session.

        Args:
            session: the study in progress.
            folder: where an order lies while it runs, seen by every node; made if it is not there.
            listen: hears of every order that ended.
        """
        super().__init__(metric="value", mode="max")
        self._session, self._folder, self._listen = session, folder, listen
        self._folder.mkdir(parents=True, exist_ok=True)
        self._live: dict[str, tuple[Order, float]] = {}
        self._losses: Counter[str] = Counter()
        self.failure: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next order, None while everything left waits, or FINISHED."""
        with self._kept():
            return self._next(trial_id)

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        in_flight = {order.order_id for order, _ in self._live.values()}
        ready = self._session.ready(in_flight, most=1)
        if ready:
            self._live[trial_id] = (ready[0], time.perf_counter())
            path = self._path(trial_id)
            path.write_text(ready[0].model_dump_json(), "utf-8")
            return {"order": str(path)}
        if self._live:
            return None
        if self._session.is_finished:
            finished: str = Searcher.FINISHED
            return finished
        # Tune would ask for ever without a word.
        raise RuntimeError("nothing is running and nothing is ready: the protocol is stuck")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the session that an order ended; one whose process died is handed out again first."""
        order, started = self._live.pop(trial_id)
        self._path(trial_id).unlink(missing_ok=True)
        outcome = "lost" if error or not result else str(result.get("outcome", "lost"))
        with self._kept():
            if outcome == "lost":
                outcome = self._after_a_loss(order)
            if outcome:
                outcome = self._session.ended(order, outcome)
                self._listen(Event(order, outcome, time.perf_counter() - started, len(self._live)))

    def _path(self, trial_id: str) -> Path:
        # Tune keeps several copies of every configuration to its end: they hold no more than this path.
        return self._folder / f"{trial_id}.json"

    def _after_a_loss(self, order: Order) -> str:
        """Return what became of an order whose process died; nothing if it is to run again."""
        folder = self._session.folder
        if folder.has_final(order.order_id):
            return "there already"
        note_hung(folder, order.order_id)
        self._losses[order.order_id] += 1
        return "lost" if self._losses[order.order_id] > RELAUNCHES else ""

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the records are the truth, Tune's folder is scratch."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class Reduced(Callback):  # type: ignore[misc]
    """Leaves of a result what the searcher reads: Tune keeps statistics of every number in it, for good."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_more: Any
    ) -> None:
        """Take the times and counters away that Tune added."""
        for name in result.keys() - {"outcome", "value"}:
            del result[name]
