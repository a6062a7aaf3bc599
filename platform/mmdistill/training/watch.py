"""Which lanes are alive, and where the others stopped being finite.

Axes: K lanes, P parameters of one lane.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Watch:
    """Takes note of values that are not finite, without a synchronisation with the device.

    Attributes:
        alive_K: which lanes have been finite all along.
        first: per name the first step at which it was not finite, infinite where it always was.
    """

    alive_K: Tensor
    first: dict[str, Tensor] = field(default_factory=dict)

    def see(self, values: Mapping[str, Tensor], step: int) -> None:
        """Look at the losses of a step, one value per lane by name."""
        for name, value_K in values.items():
            self._note(name, torch.isfinite(value_K.detach()), step)

    def see_gradient(self, gradient_KP: Tensor, step: int) -> None:
        """Look at the gradient of a step, whatever the loss was."""
        self._note("gradient", torch.isfinite(gradient_KP.sum(dim=1)), step)

    def _note(self, name: str, fine_K: Tensor, step: int) -> None:
        failed_K = torch.where(fine_K, math.inf, float(step))
        before_K = self.first.get(name)
        self.first[name] = failed_K if before_K is None else torch.minimum(before_K, failed_K)
        self.alive_K = self.alive_K & fine_K

    def only(self, lanes: Tensor) -> "Watch":
        """Return the watch over some lanes."""
        return Watch(self.alive_K[lanes], {name: step_K[lanes] for name, step_K in self.first.items()})

    def reasons(self) -> list[str | None]:
        """Return what went wrong in each lane: the name that failed first, and at which step."""
        return [None if alive else self._reason(lane) for lane, alive in enumerate(self.alive_K.tolist())]

    def _reason(self, lane: int) -> str:
        # Of several at one step the first that was noted: a term, then the total, then the gradient.
        step, name = min(((float(s[lane]), n) for n, s in self.first.items()), key=lambda found: found[0])
        return f"{name} is not finite at step {int(step)}"
