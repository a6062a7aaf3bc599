"""The same protocol in this process, without Ray: for tests and for looking at one order closely."""

import time

from mmdistill.cluster.progress import Event, Listener, silent
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.studies.session import Session
from mmdistill.training.runtime import LocalRuntime


def run_inline(
    session: Session, cache: StageCache, listen: Listener = silent, most: int | None = None
) -> None:
    """Execute orders one after another until the study is finished.

    Args:
        session: the study in progress.
        cache: the stage cache.
        listen: hears of every order that ended.
        most: stop after this many orders.
    """
    done = 0
    while not session.is_finished and done != most:
        orders = session.ready(in_flight=(), most=1)
        if not orders:
            raise RuntimeError("nothing is running and nothing is ready: the protocol is stuck")
        order, clock = orders[0], time.perf_counter()
        outcome = run_order(order, session.folder, cache, LocalRuntime())
        outcome = session.ended(order, outcome)
        done += 1
        listen(Event(order, outcome, time.perf_counter() - clock, 0))
