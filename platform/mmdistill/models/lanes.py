"""Layers that hold the weights of K lanes at once.

Axes: K lanes, B batch, I inputs, O outputs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdistill.randomness import derive_seed


class LaneLinear(nn.Module):
    """K independent affine maps, one per lane: x_KBI -> x_KBO."""

    def __init__(self, inputs: int, outputs: int, seeds: Sequence[int], role: str) -> None:
        """Draw each lane's weights from its own seed, as ``torch.nn.Linear`` does (uniform in ±1/sqrt(I)).

        Args:
            inputs: I.
            outputs: O.
            seeds: one seed per lane; a lane's weights depend on its seed and ``role`` only, never on its
                neighbours, so equal seeds and shapes mean equal initialisation in every arm.
            role: what the layer is in its network.
        """
        super().__init__()
        drawn = [_uniform(inputs, outputs, derive_seed(seed, "initialisation", role)) for seed in seeds]
        self.weight_KIO = nn.Parameter(torch.stack([weight for weight, _ in drawn]))
        self.bias_K1O = nn.Parameter(torch.stack([bias for _, bias in drawn]))

    def forward(self, x_KBI: Tensor) -> Tensor:
        """Return x W + b of each lane."""
        return torch.baddbmm(self.bias_K1O, x_KBI, self.weight_KIO)


def _uniform(inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(1, outputs).uniform_(-bound, bound, generator=generator)


def lane_values(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one value per lane as a tensor [K] beside ``like``."""
    return torch.tensor(list(values), dtype=like.dtype, device=like.device)
