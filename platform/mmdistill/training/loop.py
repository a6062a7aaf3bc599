"""The training loop, the same for teachers, alignment and students.

Axes: K lanes (those still in training; A all lanes there were), B batch, P parameters of one lane, E epochs.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmdistill.training.batches import BatchOrder
from mmdistill.training.optimiser import AdamState, FlatParameters, LaneAdamW, schedule_scale
from mmdistill.training.race import RaceSettings, survivors
from mmdistill.training.runtime import Runtime
from mmdistill.training.watch import Watch


class Losses(NamedTuple):
    """One step's objective.

    Attributes:
        total_K: what is minimised, one scalar per lane.
        terms: the unweighted parts by name.
        details: further values per lane worth averaging over an epoch.
    """

    total_K: Tensor
    terms: dict[str, Tensor]
    details: dict[str, Tensor]


class Objective(Protocol):
    """What is trained, and how it is judged."""

    modules: nn.Module

    def losses(self, rows_KB: Tensor, epoch: int) -> Losses:
        """Return the losses of a batch of training rows, in an epoch from 0."""

    def validation(self) -> dict[str, Tensor]:
        """Return values per lane on the validation rows; ``criterion`` chooses the epoch, lower is better."""


class Plan(NamedTuple):
    """How long and how fast to train."""

    batches: BatchOrder
    epochs: int
    steps: int
    learning_rate_K: Tensor
    weight_decay_K: Tensor
    schedule: str


class Race(NamedTuple):
    """A race between the lanes of a training.

    Attributes:
        settings: the rules.
        only: returns the objective of some of all lanes, over the same modules.
    """

    settings: RaceSettings
    only: Callable[[Tensor], Objective]


class Snapshot(NamedTuple):
    """A training between two epochs: tensors by name, and the rest as plain JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Keeper(Protocol):
    """Where a training in progress is kept, so that it can go on after its process died."""

    def load(self) -> Snapshot | None:
        """Return the last snapshot that is whole, if there is one."""

    def is_due(self) -> bool:
        """Return whether it is time for another snapshot."""

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""


@dataclass
class Fitted:
    """A finished training; the modules hold each lane's best epoch.

    Attributes:
        epoch_A: the kept epoch of each lane, from 0.
        curves: per name one value per lane and epoch it trained, [A][E]; ``term/``, ``detail/`` or
            ``validation/``.
        diverged: lane -> "term at step n" for lanes whose loss stopped being finite.
        stopped: lane -> epochs it trained, for lanes that a race stopped.
        cpu_s: CPU seconds of the whole cohort, over all processes whose work is in it: what was done after
            the last snapshot of a process that died is not.
    """

    parameters: FlatParameters
    epoch_A: list[int]
    curves: dict[str, list[list[float]]]
    diverged: dict[int, str]
    stopped: dict[int, int]
    cpu_s: float

    def share(self, lane: int) -> float:
        """Return the CPU seconds of one lane: its epochs' share of the whole."""
        epochs = [len(curve) for curve in next(iter(self.curves.values()))]
        return self.cpu_s * epochs[lane] / sum(epochs)


def fit(
    objective: Objective,
    plan: Plan,
    runtime: Runtime,
    race: Race | None = None,
    keeper: Keeper | None = None,
) -> Fitted:
    """Train every lane and leave the modules at each lane's best epoch.

    A lane whose loss stops being finite stands still from there on and disturbs no other; where none is left
    training ends.

    Args:
        objective: what is trained.
        plan: how long and how fast; that a race may end lanes earlier does not change their schedule.
        runtime: where this runs; the first worker writes the snapshots, all go on from the same.
        race: ends lanes that fall behind; the others go on as a smaller cohort.
        keeper: where to go on from, and where to leave snapshots between epochs.
    """
    start = time.process_time()
    training = Training(objective, plan, runtime, race)
    if keeper is not None:
        found = runtime.first(keeper.load() if runtime.rank == 0 else None)
        if found is not None:
            training.restore(found)
    before = training.cpu_s
    while training.goes_on():
        training.run_epoch()
        training.cpu_s = before + time.process_time() - start
        if keeper is not None and runtime.rank == 0 and training.goes_on() and keeper.is_due():
            keeper.save(training.snapshot())
    return training.result()


class Training:
    """A training in progress."""

    def __init__(self, objective: Objective, plan: Plan, runtime: Runtime, race: Race | None = None) -> None:
        self._objective, self._plan, self._runtime, self._race = objective, plan, runtime, race
        self._modules = objective.modules
        self._parameters = FlatParameters(objective.modules)
        self._optimiser = LaneAdamW(self._parameters, plan.learning_rate_K, plan.weight_decay_K)
        self._batches = plan.batches
        value_AP = self._parameters.value_KP
        count, device = len(value_AP), value_AP.device
        self._lanes = list(range(count))
        self._watch = Watch(torch.ones(count, dtype=torch.bool, device=device))
        self._kept_AP = value_AP.clone()
        self._best_A = torch.full((count,), math.inf, device=device)
        self._epoch_A = torch.zeros(count, dtype=torch.long, device=device)
        self._curves: dict[str, list[list[float]]] = {}
        self._criteria: list[list[float]] = [[] for _ in range(count)]
        self._diverged: dict[int, str] = {}
        self._stopped: dict[int, int] = {}
        self._epoch = 0
        self.cpu_s = 0.0

    def goes_on(self) -> bool:
        """Return whether there is an epoch left, and a lane for it."""
        return self._epoch < self._plan.epochs and bool(self._watch.alive_K.any())

    def run_epoch(self) -> None:
        """Train for an epoch, look at the validation rows and drop the lanes that the race stops."""
        record = self.take_steps(self._plan.steps)
        with torch.no_grad():
            seen = self._objective.validation()
        self._runtime.beat()
        self._keep_best(seen["criterion"])
        record |= {f"validation/{name}": value_K for name, value_K in seen.items() if name != "criterion"}
        for name, value_K in record.items():
            curves = self._curves.setdefault(name, [[] for _ in self._criteria])
            for lane, value in zip(self._lanes, value_K.tolist(), strict=True):
                curves[lane].append(value)
        self._epoch += 1
        if self._race is not None and self._epoch < self._plan.epochs:
            going = survivors(self._race.settings, self._criteria)
            if len(going) < len(self._lanes):
                self._drop_all_but(going)

    def take_steps(self, count: int) -> dict[str, Tensor]:
        """Take the next steps of an epoch; return the mean of every loss and detail over them, per lane."""
        plan, first = self._plan, self._epoch * self._plan.steps
        sums: dict[str, Tensor] = {}
        for step, rows_KB in enumerate(self._batches.take(count).to(self._runtime.device), start=first):
            losses = self._objective.losses(rows_KB, self._epoch)
            self._parameters.differentiate(losses.total_K)
            self._runtime.average(self._parameters.gradient_KP)
            seen = {**losses.terms, "total": losses.total_K}
            self._watch.see(seen, self._parameters.gradient_KP, step)
            scale = schedule_scale(plan.schedule, step, plan.steps * plan.epochs)
            self._optimiser.step(scale, self._watch.alive_K)
            self._runtime.beat()
            for name, value_K in _parts(losses).items():
                sums[name] = sums[name] + value_K if name in sums else value_K
        return {name: total_K / count for name, total_K in sums.items()}

    def _keep_best(self, criterion_K: Tensor) -> None:
        alive_K, at_K = self._watch.alive_K, torch.tensor(self._lanes, device=criterion_K.device)
        better_K = alive_K & (criterion_K < self._best_A[at_K])
        at_L = at_K[better_K]
        self._best_A[at_L] = criterion_K[better_K]
        self._epoch_A[at_L] = self._epoch
        self._kept_AP[at_L] = self._parameters.value_KP[better_K]
        for lane, value in zip(self._lanes, criterion_K.where(alive_K, math.nan).tolist(), strict=True):
            self._criteria[lane].append(value)

    def _drop_all_but(self, going: Sequence[int]) -> None:
        for lane, reason in zip(self._lanes, self._watch.reasons(), strict=True):
            if lane in going:
                continue
            if reason is None:
                self._stopped[lane] = self._epoch
            else:
                self._diverged[lane] = reason
        self._narrow(going)

    def _narrow(self, going: Sequence[int]) -> None:
        """Let some of the lanes go on as a smaller stack."""
        assert self._race is not None
        device, plan = self._kept_AP.device, self._plan
        at = torch.tensor([self._lanes.index(lane) for lane in going], device=device)
        of_all = torch.tensor(going, device=device)
        self._parameters.hold(self._parameters.value_KP[at])
        for module, name, buffer_K in _buffers(self._modules):
            setattr(module, name, buffer_K[at])
        rate_K, decay_K = (values_A[of_all] for values_A in (plan.learning_rate_K, plan.weight_decay_K))
        state = self._optimiser.state.only(at)
        self._optimiser = LaneAdamW(self._parameters, rate_K, decay_K, state)
        self._batches.keep(at)
        self._watch = self._watch.only(at)
        self._objective = self._race.only(of_all)
        self._lanes = list(going)

    def result(self) -> Fitted:
        """Return what came out; the modules hold all lanes again."""
        self._parameters.hold(self._kept_AP)
        reasons = zip(self._lanes, self._watch.reasons(), strict=True)
        diverged = self._diverged | {lane: reason for lane, reason in reasons if reason is not None}
        kept = self._epoch_A.tolist()
        return Fitted(self._parameters, kept, self._curves, diverged, self._stopped, self.cpu_s)

    def snapshot(self) -> Snapshot:
        """Return everything the rest of the training depends on."""
        adam = self._optimiser.state
        tensors = {
            "parameters": self._parameters.value_KP,
            "first_moments": adam.first_KP,
            "second_moments": adam.second_KP,
            "kept": self._kept_AP,
            "best": self._best_A,
            "best_epoch": self._epoch_A,
            "alive": self._watch.alive_K,
        }
        tensors |= {f"batches.{name}": tensor for name, tensor in self._batches.state().items()}
        tensors |= {f"failed_first.{name}": step_K for name, step_K in self._watch.first.items()}
        tensors |= {f"buffer.{name}": buffer_K for name, buffer_K in self._modules.named_buffers()}
        tensors |= {f"generator.{n}": g.get_state() for n, g in enumerate(_generators(self._modules))}
        facts = {
            "epoch": self._epoch,
            "steps": adam.steps,
            "lanes": self._lanes,
            "curves": self._curves,
            "criteria": self._criteria,
            "diverged": list(self._diverged.items()),
            "stopped": list(self._stopped.items()),
            "cpu_s": self.cpu_s,
        }
        return Snapshot(tensors, facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of the same training; bit for bit as if it had not been cut off, on CPU."""
        tensors, facts = snapshot
        if len(facts["lanes"]) < len(self._lanes):
            self._narrow(facts["lanes"])
        self._parameters.value_KP.copy_(tensors["parameters"])
        device = self._kept_AP.device
        moments = [tensors[name].to(device) for name in ("first_moments", "second_moments")]
        state = AdamState(moments[0], moments[1], facts["steps"])
        at = torch.tensor(self._lanes, device=device)
        rate_K, decay_K = self._plan.learning_rate_K[at], self._plan.weight_decay_K[at]
        self._optimiser = LaneAdamW(self._parameters, rate_K, decay_K, state)
        self._batches.restore(_under("batches.", tensors))
        for name, buffer_K in self._modules.named_buffers():
            buffer_K.copy_(tensors[f"buffer.{name}"])
        for n, generator in enumerate(_generators(self._modules)):
            generator.set_state(tensors[f"generator.{n}"])
        first = {name: step_K.to(device) for name, step_K in _under("failed_first.", tensors).items()}
        self._watch = Watch(tensors["alive"].to(device), first)
        self._kept_AP.copy_(tensors["kept"])
        self._best_A.copy_(tensors["best"])
        self._epoch_A.copy_(tensors["best_epoch"])
        self._curves, self._criteria = facts["curves"], facts["criteria"]
        self._diverged, self._stopped = dict(facts["diverged"]), dict(facts["stopped"])
        self._epoch, self.cpu_s = facts["epoch"], facts["cpu_s"]


def _parts(losses: Losses) -> dict[str, Tensor]:
    parts = {f"term/{name}": value_K for name, value_K in losses.terms.items()}
    parts |= {f"detail/{name}": value_K for name, value_K in losses.details.items()}
    return {name: value_K.detach() for name, value_K in parts.items()}


def _generators(modules: nn.Module) -> list[torch.Generator]:
    return [generator for module in modules.modules() for generator in getattr(module, "generators", ())]


def _buffers(modules: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (module, name, buffer_K)
        for module in modules.modules()
        for name, buffer_K in module.named_buffers(recurse=False)
    ]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
