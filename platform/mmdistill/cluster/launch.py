"""Run a study on Ray: one Tuner, our searcher, every order through a TorchTrainer."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mmdistill.cluster.environment import local_cluster
from mmdistill.cluster.progress import Listener, silent
from mmdistill.errors import MmdistillError, StudyError
from mmdistill.studies.file import Resources
from mmdistill.studies.session import Session

# How often Tune starts an order again whose process died.
RELAUNCHES = 2


class Interrupted(MmdistillError):  # noqa: N818
    """The user ended the run; everything finished is on record."""


def launch(session: Session, cache: Path, listen: Listener = silent) -> None:
    """Execute orders on a private local Ray until the study is finished.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once Ray has ended.
        StudyError: if the cluster cannot run an order of this study.
    """
    with local_cluster() as scratch, _sigterm_as_sigint() as was_interrupted:
        _run(session, cache, listen, scratch)
        if was_interrupted.is_set() or not session.is_finished:
            raise Interrupted("the run was ended; everything finished is on record")


def _run(session: Session, cache: Path, listen: Listener, scratch: Path) -> None:
    from ray import tune

    from mmdistill.cluster.searcher import OrderSearcher
    from mmdistill.cluster.worker import order_trial

    resources = session.study.file.resources
    share, concurrent, gpus = shares(resources)
    common = {
        "study": str(session.folder.root.resolve()),
        "cache": str(cache.resolve()),
        "scratch": str(scratch / "train"),
        "directory": str(Path.cwd()),
        "workers": resources.workers,
        "device": resources.device,
        "gpus": gpus,
    }
    tuner = tune.Tuner(
        tune.with_resources(order_trial, share),
        tune_config=tune.TuneConfig(
            search_alg=OrderSearcher(session, common, listen),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            metric="value",
            mode="max",
        ),
        run_config=tune.RunConfig(
            name="orders",
            storage_path=str(scratch / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RELAUNCHES),
        ),
    )
    tuner.fit()


def shares(resources: Resources) -> tuple[dict[str, float], int, float]:
    """Return what one order reserves, how many run at once, and the GPUs of one worker.

    Raises:
        StudyError: if the cluster is too small for a single order.
    """
    import ray

    from mmdistill.cluster.worker import DRIVER_CPUS, WORKER_CPUS

    there: dict[str, Any] = ray.cluster_resources()
    gpus = resources.gpus if resources.device != "cpu" and there.get("GPU", 0) > 0 else 0.0
    if resources.device == "cuda" and not gpus:
        raise StudyError('resources.device is "cuda", but the cluster has no GPU; use "auto" or "cpu"')
    workers = resources.workers
    cpus = 1.0 if workers == 0 else DRIVER_CPUS + workers * WORKER_CPUS
    fits = int(there.get("CPU", 1) / cpus + 1e-6)
    if gpus:
        fits = min(fits, int(there["GPU"] / (gpus * max(workers, 1)) + 1e-6))
    if fits < 1:
        asked = f"{cpus:g} CPUs and {gpus * max(workers, 1):g} GPUs"
        has = f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        raise StudyError(
            f"one order needs {asked}, but the cluster has {has}; lower resources.workers or gpus"
        )
    share = {"cpu": 1.0 if workers == 0 else DRIVER_CPUS}
    if gpus and workers == 0:
        share["gpu"] = gpus
    return share, min(resources.concurrent or fits, fits), gpus


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[threading.Event]:
    """Let SIGTERM end the run as Ctrl-C does; yield whether it came."""
    came = threading.Event()

    def forward(_number: int, _frame: FrameType | None) -> None:
        came.set()
        os.kill(os.getpid(), signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
