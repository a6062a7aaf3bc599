"""AdamW over K lanes at once, each with its own learning rate and weight decay.

Axes: K lanes, P parameters of one lane.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmdistill.settings import Settings, Tunable


class OptimiserSettings(Settings):
    """AdamW (Loshchilov and Hutter, 2019) and its schedule."""

    learning_rate: Annotated[float, Field(gt=0), Tunable(low=1e-3, high=3e-2, log=True)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0), Tunable(low=1e-5, high=1e-1, log=True)] = 1e-3
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Tunable(low=0.0, high=0.2)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"


class FlatParameters:
    """All parameters of some modules as views into one matrix [K, P], and their gradients into another.

    One flat matrix makes an optimiser step, a snapshot of the best epoch and an average over workers a few
    operations, however many layers there are.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        self._parameters = list(parameters.values())
        lanes = next(iter(parameters.values())).shape[0]
        self.value_KP = torch.cat([p.detach().reshape(lanes, -1) for p in parameters.values()], dim=1)
        self.gradient_KP = torch.zeros_like(self.value_KP)
        self._gradients: list[Tensor] = []
        self._slices: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for name, parameter in parameters.items():
            stop = start + parameter.numel() // lanes
            self._slices[name] = (slice(start, stop), parameter.shape)
            parameter.data = self.value_KP[:, start:stop].view(parameter.shape)
            self._gradients.append(self.gradient_KP[:, start:stop].view(parameter.shape))
            start = stop

    def differentiate(self, total_K: Tensor) -> None:
        """Fill the gradient of the sum over lanes; lanes share nothing, so each gets its own."""
        found = torch.autograd.grad(total_K.sum(), self._parameters, allow_unused=True)
        used = [(into, grad) for into, grad in zip(self._gradients, found, strict=True) if grad is not None]
        if len(used) < len(found):
            self.gradient_KP.zero_()
        for into, grad in used:
            into.copy_(grad)

    def lane(self, k: int) -> dict[str, Tensor]:
        """Return a copy of one lane's parameters by name, each with its lane axis of length 1."""
        return {
            name: self.value_KP[k, where].clone().view(1, *shape[1:])
            for name, (where, shape) in self._slices.items()
        }


def load_lanes(module: nn.Module, lanes: Sequence[Mapping[str, Tensor]]) -> None:
    """Fill a module of K lanes with K saved lanes."""
    stacked = {name: torch.cat([lane[name] for lane in lanes]) for name in lanes[0]}
    module.load_state_dict(stacked)


class LaneAdamW:
    """``torch.optim.AdamW`` with a parameter group per lane: a row of the flat matrix each."""

    def __init__(self, parameters: FlatParameters, learning_rate_K: Tensor, weight_decay_K: Tensor) -> None:
        self._parameters = parameters
        self._rates = [float(rate) for rate in learning_rate_K]
        groups = []
        for value_P, gradient_P, decay in zip(
            parameters.value_KP, parameters.gradient_KP, weight_decay_K.tolist(), strict=True
        ):
            row = nn.Parameter(value_P)
            row.grad = gradient_P
            groups.append({"params": [row], "lr": 0.0, "weight_decay": decay})
        self._adam = torch.optim.AdamW(groups, fused=True)

    def step(self, scale: float, alive_K: Tensor) -> None:
        """Take one step at ``scale`` times the learning rates; lanes that are not alive stand still."""
        alive = alive_K.tolist()
        if not all(alive):
            self._parameters.gradient_KP[~alive_K] = 0.0
        for group, rate, is_alive in zip(self._adam.param_groups, self._rates, alive, strict=True):
            group["lr"] = scale * rate if is_alive else 0.0
        self._adam.step()


def schedule_scale(schedule: str, step: int, steps: int) -> float:
    """Return the factor on the learning rate at a step: 1, or half a cosine from 1 down to 0."""
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
