"""The adapter between Tune and a study in progress: Tune asks, the session answers."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ray.tune.search import Searcher

from mmdistill.cluster.progress import Event, Listener
from mmdistill.cluster.watchdog import note_hung
from mmdistill.pipeline.order import Order
from mmdistill.studies.session import Session


class OrderSearcher(Searcher):  # type: ignore[misc]
    """Hands out orders as Tune trials, each when its inputs are there.

    Attributes:
        failure: what went wrong here; Tune passes on no more than its text.
    """

    def __init__(self, session: Session, common: Mapping[str, Any], listen: Listener) -> None:
        """Wrap a session.

        Args:
            session: the study in progress.
            common: what every trial's configuration holds besides its order.
            listen: hears of every order that ended.
        """
        super().__init__(metric="value", mode="max")
        self._session, self._common, self._listen = session, dict(common), listen
        self._live: dict[str, tuple[Order, float]] = {}
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
            return {"order": ready[0].model_dump_json(), **self._common}
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
        """Tell the session that an order ended."""
        order, started = self._live.pop(trial_id)
        # Tune has started it again before it calls it an error.
        outcome = "lost" if error or not result else str(result.get("outcome", "lost"))
        with self._kept():
            if outcome == "lost":
                note_hung(self._session.folder, order.order_id)
            self._session.ended(order, outcome)
            self._listen(Event(order, outcome, time.perf_counter() - started, len(self._live)))

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
