"""Run a study on Ray: one Tuner, our searcher, every order through a TorchTrainer."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

from mmdistill.cluster.environment import local_cluster
from mmdistill.cluster.joining import LOCAL, joined_cluster
from mmdistill.cluster.progress import Listener, silent
from mmdistill.cluster.shares import Shares, shares
from mmdistill.cluster.watchdog import remove_unused
from mmdistill.errors import MmdistillError, StudyError
from mmdistill.studies.session import Session

INTERRUPTED = 130
RESUMES = "everything finished is on record, and the same command resumes"


class Interrupted(MmdistillError):  # noqa: N818
    """The user ended the run; everything finished is on record."""


def launch(session: Session, cache: Path, listen: Listener = silent, address: str = LOCAL) -> None:
    """Execute orders on Ray until the study is finished.

    Args:
        session: the study in progress.
        cache: the stage cache.
        listen: hears of every order that ended.
        address: ``local`` for a private Ray on this machine, or ``HOST:PORT`` of a running cluster.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once Ray has ended.
        StudyError: if the cluster cannot be joined, cannot run an order of this study, or ended early.
    """
    with _Signals() as signals, _cluster(session, cache, address) as scratch:
        signals.catch()  # Again: Ray has put its own handler of SIGTERM in place.
        try:
            _run(session, cache, listen, scratch)
        except Exception:
            # What comes of a stop is no error.
            if not signals.came.is_set():
                raise
        if signals.came.is_set():
            raise Interrupted(f"the run was ended; {RESUMES}")
        remove_unused(session.folder)
        if not session.is_finished:
            raise StudyError(f"Tune ended before the study was finished; {RESUMES}")


def _cluster(session: Session, cache: Path, address: str) -> contextlib.AbstractContextManager[Path]:
    if address == LOCAL:
        return local_cluster(groups=session.study.file.resources.workers > 0)
    return joined_cluster(address, session.folder.root, cache)


def _run(session: Session, cache: Path, listen: Listener, scratch: Path) -> None:
    import ray
    from ray import tune

    from mmdistill.cluster.searcher import OrderSearcher, Reduced
    from mmdistill.cluster.standby import StandbyScheduler
    from mmdistill.cluster.worker import order_trial

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    share = shares(session.study.file.resources, nodes)
    searcher = OrderSearcher(session, scratch / "running", listen)
    common = _common(session, cache, scratch, share)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(order_trial, common=common), share.order),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StandbyScheduler(share.concurrent),
            num_samples=-1,
            max_concurrent_trials=share.concurrent,
            reuse_actors=True,
            metric="value",
            mode="max",
        ),
        run_config=tune.RunConfig(
            name="orders",
            storage_path=str(scratch / "tune"),
            verbose=0,
            callbacks=[Reduced()],
            # The searcher hands an order out again whose process died.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    except (tune.TuneError, ray.exceptions.RayError, ConnectionError) as error:
        # Tune makes text of whatever went wrong in the searcher.
        if searcher.failure is not None:
            raise searcher.failure from error
        raise StudyError(f"Ray ended the run: {_last_line(error)}; {RESUMES}") from error


def _common(session: Session, cache: Path, scratch: Path, share: Shares) -> dict[str, Any]:
    """Return what every order is told besides itself."""
    resources = session.study.file.resources
    return {
        "study": str(session.folder.root.resolve()),
        "cache": str(cache.resolve()),
        "scratch": str(scratch / "train"),
        "directory": str(Path.cwd()),
        "workers": resources.workers,
        "worker": share.worker,
        "device": resources.device,
        "gpus": share.gpus,
        "patience": resources.patience,
    }


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Signals:
    """Notes SIGINT and SIGTERM: the first ends the run in order, the second at once.

    Attributes:
        came: set by the first.
    """

    def __init__(self) -> None:
        self.came = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            self._before = {number: signal.getsignal(number) for number in numbers}
            self.catch()
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def catch(self) -> None:
        """Put the handlers in place."""
        for number in self._before.keys() - {signal.SIGUSR1}:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came.is_set():
            os._exit(INTERRUPTED)
        self.came.set()
        # Tune, once it runs, takes SIGUSR1 as the wish to end; Ctrl-C it would swallow.
        end = signal.getsignal(signal.SIGUSR1)
        if not callable(end):
            raise KeyboardInterrupt
        end(number, frame)
