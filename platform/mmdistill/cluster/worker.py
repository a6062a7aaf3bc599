"""The body of a Tune trial: one order, run by Ray Train in this process or in a worker group."""

import os
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.pipeline.order import Order
from mmdistill.records.study import StudyFolder
from mmdistill.training.runtime import LocalRuntime, Runtime, Value

WORKER_CPUS = 0.9
DRIVER_CPUS = 0.1


class GroupRuntime:
    """One worker of a group: rows are shared out, outputs gathered with their gradients."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device

    def share(self, rows_KB: Tensor) -> Tensor:
        """Return this worker's block of the rows."""
        return rows_KB.chunk(self.world_size, dim=1)[self.rank].contiguous()

    def gather(self, part: Tensor) -> Tensor:
        """Return the blocks of all workers in order; every worker then computes the same loss.

        Backward adds up the gradients of all workers, each of the whole loss: ``average`` takes it back.
        """
        return torch.cat(all_gather(part.contiguous()), dim=1)  # type: ignore[no-untyped-call]

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
        """Say nothing yet."""


def train_loop(config: dict[str, Any]) -> dict[str, str]:
    """Run the order in ``config`` and return its outcome; called by Ray Train on every worker."""
    from ray.train.torch import get_device

    # Ray gives a trial a folder of its own; paths in a study file are relative to where the user stands.
    os.chdir(config["directory"])
    device = torch.device("cpu") if config["device"] == "cpu" else get_device()
    runtime: Runtime = GroupRuntime(device) if dist.is_initialized() else LocalRuntime(device)
    order = Order.model_validate_json(config["order"])
    study = StudyFolder.open(Path(config["study"]))
    return {"outcome": run_order(order, study, StageCache(Path(config["cache"])), runtime)}


def order_trial(config: dict[str, Any]) -> None:
    """Execute one order: the function that Tune runs.

    Nothing but the end of a process fails here; what goes wrong inside an order is on record.
    """
    from ray import tune

    tune.report({"outcome": fit_order(config), "value": 0.0})


def fit_order(config: dict[str, Any]) -> str:
    """Run one order through a ``TorchTrainer`` and return its outcome.

    Without workers it runs in this process (local mode), else in a worker group with a process group.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers, gpus = config["workers"], config["gpus"]
    if workers == 0:
        alone = ScalingConfig(num_workers=0, use_gpu=gpus > 0)
        trainer = TorchTrainer(train_loop, train_loop_config=config, scaling_config=alone)
    else:
        each = {"CPU": WORKER_CPUS} | ({"GPU": gpus} if gpus else {})
        trainer = TorchTrainer(
            train_loop,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=each),
            # A name of its own for every try: Train resumes any run whose name it has seen before.
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=config["scratch"],
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
            ),
        )
    outcome: str = trainer.fit().return_value["outcome"]
    return outcome
