"""The body of a Tune trial: one order, run by Ray Train in this process or in a worker group."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from mmdistill.cluster.watchdog import Watchdog, note_hung, open_attempt
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.pipeline.order import Order
from mmdistill.records.store import is_storage_fault
from mmdistill.records.study import StudyFolder
from mmdistill.training.runtime import LocalRuntime, Runtime, Value, in_order

Beat = Callable[[], None]


class SoleRuntime(LocalRuntime):
    """The only worker of an order, under a watchdog."""

    def __init__(self, device: torch.device, beat: Beat) -> None:
        super().__init__(device)
        self._beat = beat

    def beat(self) -> None:
        """Tell the watchdog."""
        self._beat()


class GroupRuntime:
    """One worker of a group: rows are shared out, outputs gathered with their gradients."""

    def __init__(self, device: torch.device, beat: Beat) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self._beat = beat

    def share(self, rows_KB: Tensor) -> Tensor:
        """Return this worker's block of the rows."""
        return rows_KB.chunk(self.world_size, dim=1)[self.rank].contiguous()

    def gather(self, part: Tensor) -> Tensor:
        """Return the blocks of all workers in order; every worker then computes the same loss.

        Backward adds up the gradients of all workers, each of the whole loss: ``average`` takes it back.
        """
        return in_order(torch.cat(all_gather(part.contiguous()), dim=1))  # type: ignore[no-untyped-call]

    def average(self, gradient: Tensor) -> None:
        """Average a gradient over the workers, in place."""
        dist.all_reduce(gradient)
        gradient.div_(self.world_size)

    def first(self, value: Value) -> Value:
        """Return what the worker of rank 0 holds."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def beat(self) -> None:
        """Tell the watchdog."""
        self._beat()


def train_loop(config: dict[str, Any]) -> dict[str, str]:
    """Run the order in ``config`` and return its outcome; called by Ray Train on every worker."""
    from ray.train.torch import get_device

    # Ray gives a trial a folder of its own; paths in a study file are relative to where the user stands.
    os.chdir(config["directory"])
    order, study = _order_and_study(config)
    with Watchdog(study, order.order_id, config["patience"]) as watchdog:
        device = torch.device("cpu") if config["device"] == "cpu" else get_device()
        kind = GroupRuntime if dist.is_initialized() else SoleRuntime
        runtime: Runtime = kind(device, watchdog.beat)
        if runtime.rank == 0:
            note_hung(study, order.order_id)
        return {"outcome": run_order(order, study, StageCache(Path(config["cache"])), runtime)}


def order_trial(config: dict[str, Any], common: dict[str, Any]) -> None:
    """Execute one order: the function that Tune runs.

    Args:
        config: where the order lies.
        common: what all orders are told.

    Nothing but the end of this process fails here; what goes wrong inside an order is on record.
    """
    from ray import tune

    tune.report({"outcome": fit_order(common | config), "value": 0.0})


def fit_order(config: dict[str, Any]) -> str:
    """Run one order through a ``TorchTrainer`` and return its outcome.

    Without workers it runs in this process (local mode), else in a worker group with a process group; a
    group that loses a worker has failed. A disk that fails beside the order, where the study is read or the
    watchdog begins, is ``storage`` as it is inside.
    """
    try:
        return _fitted(config)
    except OSError as error:
        if not is_storage_fault(error):
            raise
        return "storage"


def _fitted(config: dict[str, Any]) -> str:
    from ray.train import ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    if config["workers"] == 0:
        alone = ScalingConfig(num_workers=0, use_gpu=config["gpus"] > 0)
        trainer = TorchTrainer(train_loop, train_loop_config=config, scaling_config=alone)
    else:
        trainer = _group(config)
    try:
        outcome: str = trainer.fit().return_value["outcome"]
    except TrainingFailedError as error:
        return _group_failed(config, error)
    return outcome


def _group(config: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = config["gpus"]
    return TorchTrainer(
        train_loop,
        train_loop_config=config,
        # NCCL wants a device of its own for every worker.
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config["workers"], use_gpu=gpus > 0, resources_per_worker=config["worker"]
        ),
        # A name of its own for every try: Train resumes any run whose name it has seen before.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    )


def _group_failed(config: dict[str, Any], error: Exception) -> str:
    """Put on record why a group was lost, as far as its workers could not say it themselves."""
    order, study = _order_and_study(config)
    attempts = study.attempts(order.order_id)
    if attempts and attempts[-1].outcome == "storage":
        return "storage"  # The others lost the one that writes.
    if not note_hung(study, order.order_id):
        causes = getattr(error, "worker_failures", None) or {0: error}
        reason = "; ".join(f"worker {rank}: {_last_line(cause)}" for rank, cause in sorted(causes.items()))
        attempt = open_attempt(study, order.order_id)
        # A worker may have told itself; a group that never came to life has begun nothing.
        if attempt is not None:
            study.end_attempt(order.order_id, attempt.attempt, "failed", reason)
        elif not attempts:
            study.end_attempt(order.order_id, study.begin_attempt(order.order_id), "failed", reason)
    return "failed"


def _order_and_study(config: dict[str, Any]) -> tuple[Order, StudyFolder]:
    order = Order.model_validate_json(Path(config["order"]).read_bytes())
    return order, StudyFolder.open(Path(config["study"]))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
