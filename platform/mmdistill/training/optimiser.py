"""AdamW over K lanes at once, each with its own learning rate and weight decay.

Axes: K lanes, P parameters of one lane.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, _foreach_copy_, _fused_adamw_, nn

from mmdistill.settings import Settings, Tunable

# AdamW's own defaults.
BETAS, EPS = (0.9, 0.999), 1e-8


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

    value_KP: Tensor
    gradient_KP: Tensor

    def __init__(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        self._parameters = list(parameters.values())
        lanes = self._parameters[0].shape[0]
        self._slices: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for name, parameter in parameters.items():
            stop = start + parameter.numel() // lanes
            self._slices[name] = (slice(start, stop), parameter.shape[1:])
            start = stop
        self.hold(torch.cat([p.detach().reshape(lanes, -1) for p in self._parameters], dim=1))

    def hold(self, value_KP: Tensor) -> None:
        """Let the modules hold these lanes from now on, as many as there are; the gradient becomes 0."""
        self.value_KP, self.gradient_KP = value_KP, torch.zeros_like(value_KP)
        self._gradients = []
        for parameter, (where, shape) in zip(self._parameters, self._slices.values(), strict=True):
            parameter.data = value_KP[:, where].view(-1, *shape)
            self._gradients.append(self.gradient_KP[:, where].view(-1, *shape))

    def differentiate(self, total_K: Tensor) -> None:
        """Fill the gradient of the sum over lanes; lanes share nothing, so each gets its own."""
        found = torch.autograd.grad(total_K.sum(), self._parameters, allow_unused=True)
        used = [pair for pair in zip(self._gradients, found, strict=True) if pair[1] is not None]
        if len(used) < len(found):
            self.gradient_KP.zero_()
        if used:
            into, gradients = zip(*used, strict=True)
            _foreach_copy_(into, gradients)

    def lane(self, k: int) -> dict[str, Tensor]:
        """Return a copy of one lane's parameters by name, each with its lane axis of length 1."""
        return {
            name: self.value_KP[k, where].clone().view(1, *shape)
            for name, (where, shape) in self._slices.items()
        }


def load_lanes(module: nn.Module, lanes: Sequence[Mapping[str, Tensor]]) -> None:
    """Fill a module of K lanes with K saved lanes."""
    stacked = {name: torch.cat([lane[name] for lane in lanes]) for name in lanes[0]}
    module.load_state_dict(stacked)


class AdamState(NamedTuple):
    """What AdamW remembers: the running means of gradients and of their squares, and the steps taken."""

    first_KP: Tensor
    second_KP: Tensor
    steps: int

    def only(self, lanes: Tensor) -> "AdamState":
        """Return a copy of the state of some lanes."""
        return AdamState(self.first_KP[lanes], self.second_KP[lanes], self.steps)


class LaneAdamW:
    """``torch.optim.AdamW`` with a learning rate and a weight decay per lane, a row of the flat matrix each.

    The operator below ``AdamW(fused=True)`` is called directly: with a parameter group per lane torch's own
    bookkeeping takes three times as long as the step.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        learning_rate_K: Tensor,
        weight_decay_K: Tensor,
        state: AdamState | None = None,
    ) -> None:
        """Prepare the steps.

        Args:
            parameters: what is trained.
            learning_rate_K: of each lane.
            weight_decay_K: of each lane.
            state: where to go on, taken over and changed in place; a fresh one by default.
        """
        zero_KP = torch.zeros_like(parameters.value_KP)
        self.state = state or AdamState(zero_KP, zero_KP.clone(), 0)
        self._gradient_KP = parameters.gradient_KP
        self._rates, self._decays = learning_rate_K.tolist(), weight_decay_K.tolist()
        matrices = (parameters.value_KP, parameters.gradient_KP, self.state.first_KP, self.state.second_KP)
        self._rows = list(zip(*(matrix_KP.unbind() for matrix_KP in matrices), strict=True))
        self._steps = torch.tensor(float(self.state.steps), device=parameters.value_KP.device)

    def step(self, scale: float, alive_K: Tensor) -> None:
        """Take one step at ``scale`` times the learning rates; lanes that are not alive stand still."""
        alive = alive_K.tolist()
        if not all(alive):
            self._gradient_KP[~alive_K] = 0.0
        self._steps += 1
        for row, rate, decay, is_alive in zip(self._rows, self._rates, self._decays, alive, strict=True):
            value_P, gradient_P, first_P, second_P = row
            _fused_adamw_(
                [value_P],
                [gradient_P],
                [first_P],
                [second_P],
                [],
                [self._steps],
                lr=scale * rate if is_alive else 0.0,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )
        self.state = self.state._replace(steps=self.state.steps + 1)


def schedule_scale(schedule: str, step: int, steps: int) -> float:
    """Return the factor on the learning rate at a step: 1, or half a cosine from 1 down to 0."""
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
