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
    """Takes note of values that are not finite; the device is asked once a step.

    Attributes:
        alive_K: which lanes have been finite all along.
        first: per name the first step at which it was not finite, infinite where it always was; without the
            names that always were in all lanes.
    """

    alive_K: Tensor
    first: dict[str, Tensor] = field(default_factory=dict)

    def see(self, losses: Mapping[str, Tensor], gradient_KP: Tensor, step: int) -> None:
        """Look at the losses of a step, their total last, and at its gradient.

        Each loss is part of the total: only where that or the gradient is not finite all are looked at.
        """
        values = {name: value_K.detach() for name, value_K in losses.items()}
        values["gradient"] = gradient_KP.sum(dim=1)
        *_, total_K, gradient_K = values.values()
        if not torch.isfinite(total_K + gradient_K).all():
            for name, value_K in values.items():
                self._note(name, torch.isfinite(value_K), step)

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
