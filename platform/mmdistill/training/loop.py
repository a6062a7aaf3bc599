"""The training loop, the same for teachers, alignment and students.

Axes: K lanes, B batch, P parameters of one lane, E epochs.
"""

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmdistill.training.batches import BatchOrder
from mmdistill.training.optimiser import FlatParameters, LaneAdamW, schedule_scale
from mmdistill.training.runtime import Runtime


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

    def losses(self, rows_KB: Tensor) -> Losses:
        """Return the losses of a batch of training rows."""

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


@dataclass
class Fitted:
    """A finished training; the modules hold each lane's best epoch.

    Attributes:
        epoch_K: the kept epoch of each lane, from 0.
        curves: per name one value per epoch and lane, [E][K]; ``term/``, ``detail/`` or ``validation/``.
        diverged: lane -> "term at step n" for lanes whose loss stopped being finite.
        cpu_s: CPU seconds of the whole cohort.
    """

    parameters: FlatParameters
    epoch_K: list[int]
    curves: dict[str, list[list[float]]]
    diverged: dict[int, str]
    cpu_s: float


@dataclass
class _Watch:
    """Which lanes are alive, and where the others stopped being finite."""

    alive_K: Tensor
    first: dict[str, Tensor] = field(default_factory=dict)

    def see(self, losses: Losses, step: int) -> None:
        """Note the first step at which a term is not finite; no synchronisation with the device."""
        for name, value_K in {**losses.terms, "total": losses.total_K}.items():
            self._note(name, torch.isfinite(value_K.detach()), step)

    def see_gradient(self, gradient_KP: Tensor, step: int) -> None:
        """Note the first step at which a gradient is not finite, whatever the loss was."""
        self._note("gradient", torch.isfinite(gradient_KP.sum(dim=1)), step)

    def _note(self, name: str, fine_K: Tensor, step: int) -> None:
        never_K = torch.full_like(fine_K, math.inf, dtype=torch.float32)
        unseen_K = self.first.setdefault(name, never_K)
        self.first[name] = torch.where(~fine_K & torch.isinf(unseen_K), float(step), unseen_K)
        self.alive_K = self.alive_K & fine_K

    def report(self) -> dict[int, str]:
        """Return what went wrong per lane: the term that failed first."""
        dead = [lane for lane, alive in enumerate(self.alive_K.tolist()) if not alive]
        return {lane: self._reason(lane) for lane in dead}

    def _reason(self, lane: int) -> str:
        # Of several at one step the first that was noted: a term, then the total, then the gradient.
        step, name = min(((float(s[lane]), n) for n, s in self.first.items()), key=lambda found: found[0])
        return f"{name} is not finite at step {int(step)}"


def fit(objective: Objective, plan: Plan, runtime: Runtime) -> Fitted:
    """Train every lane and leave the modules at each lane's best epoch.

    A lane whose loss stops being finite stands still from there on and disturbs no other.
    """
    start = time.process_time()
    parameters = FlatParameters(objective.modules)
    optimiser = LaneAdamW(parameters, plan.learning_rate_K, plan.weight_decay_K)
    lanes = parameters.value_KP.shape[0]
    watch = _Watch(torch.ones(lanes, dtype=torch.bool, device=parameters.value_KP.device))
    best_K = torch.full((lanes,), math.inf, device=parameters.value_KP.device)
    epoch_K = torch.zeros(lanes, dtype=torch.long, device=parameters.value_KP.device)
    kept_KP = parameters.value_KP.clone()
    curves: dict[str, list[list[float]]] = {}
    for epoch in range(plan.epochs):
        record = _epoch(objective, plan, runtime, parameters, optimiser, watch, epoch)
        with torch.no_grad():
            seen = objective.validation()
        better_K = watch.alive_K & (seen["criterion"] < best_K)
        best_K = torch.where(better_K, seen["criterion"], best_K)
        epoch_K = torch.where(better_K, epoch, epoch_K)
        kept_KP = torch.where(better_K[:, None], parameters.value_KP, kept_KP)
        record |= {f"validation/{name}": value_K for name, value_K in seen.items() if name != "criterion"}
        for name, value_K in record.items():
            curves.setdefault(name, []).append(value_K.tolist())
    parameters.value_KP.copy_(kept_KP)
    return Fitted(parameters, epoch_K.tolist(), curves, watch.report(), time.process_time() - start)


def _epoch(
    objective: Objective,
    plan: Plan,
    runtime: Runtime,
    parameters: FlatParameters,
    optimiser: LaneAdamW,
    watch: _Watch,
    epoch: int,
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    rows_TKB = plan.batches.take(plan.steps).to(runtime.device)
    for step, rows_KB in enumerate(rows_TKB, start=epoch * plan.steps):
        losses = objective.losses(rows_KB)
        watch.see(losses, step)
        parameters.differentiate(losses.total_K)
        runtime.average(parameters.gradient_KP)
        watch.see_gradient(parameters.gradient_KP, step)
        optimiser.step(schedule_scale(plan.schedule, step, plan.steps * plan.epochs), watch.alive_K)
        parts = {f"term/{n}": v for n, v in losses.terms.items()}
        parts |= {f"detail/{n}": v for n, v in losses.details.items()}
        for name, value_K in parts.items():
            value_K = value_K.detach()
            sums[name] = sums[name] + value_K if name in sums else value_K
    return {name: total_K / plan.steps for name, total_K in sums.items()}
