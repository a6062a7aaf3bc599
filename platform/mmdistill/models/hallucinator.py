"""What stands in for the features of modalities that a student does not have (T-Net of PKDOT and MT-PKDOT).

Axes: K lanes, B batch, D width, I inputs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmdistill.models.lanes import LaneLinear

HallucinatorKind = Literal["zeros", "linear", "relu"]

# Widths of the layers in quarters of the width of the features; published for features of 512.
_QUARTERS: dict[HallucinatorKind, tuple[int, ...]] = {
    "linear": (16, 8, 4, 2, 4, 8, 16, 4),
    "relu": (2, 1, 2, 4),
}
# A step of the optimiser moves a hallucinator by this much less than the student around it: published are
# learning rates of 5e-5 and 5e-4. At the student's own rate the deep ones fall apart.
_SLOWER = 10.0


class Missing(NamedTuple):
    """The modalities a network does without, and what stands in for their features.

    Attributes:
        kind: ``zeros``, or a T-Net that predicts them from the features of the modalities there are:
            ``linear`` as in MT-PKDOT, ``relu`` as in PKDOT.
        modalities: in alphabetical order.
    """

    kind: HallucinatorKind
    modalities: tuple[str, ...]

    @property
    def is_learned(self) -> bool:
        """Return whether the features are predicted."""
        return self.kind != "zeros"


class Hallucinator(nn.Module):
    """Predict the features of a missing modality, seen_KBI -> predicted_KBD.

    ``linear``: eight affine maps without activation. ``relu``: four, ReLU between them and a sigmoid at the
    end, so that what it predicts lies in (0, 1).
    """

    def __init__(
        self, kind: HallucinatorKind, inputs: int, width: int, seeds: Sequence[int], role: str
    ) -> None:
        super().__init__()
        self._is_linear = kind == "linear"
        sizes = [inputs, *(max(width * quarters // 4, 1) for quarters in _QUARTERS[kind])]
        self.layers = nn.ModuleList(
            LaneLinear(before, after, seeds, f"{role}.{depth}")
            for depth, (before, after) in enumerate(pairwise(sizes))
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(_SLOWER)

    def forward(self, seen_KBI: Tensor) -> Tensor:
        """Return the predicted features."""
        *hidden, last = self.layers
        for layer in hidden:
            found_KBI = layer(seen_KBI) / _SLOWER
            seen_KBI = found_KBI if self._is_linear else torch.relu(found_KBI)
        predicted_KBD: Tensor = last(seen_KBI) / _SLOWER
        return predicted_KBD if self._is_linear else torch.sigmoid(predicted_KBD)
