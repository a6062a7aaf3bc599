"""A network that tells two kinds of pairs apart.

Axes: K lanes, B batch, I inputs, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from mmdistill.models.lanes import LaneLinear

# Squarings of the Gram matrix: as many as 2^5 = 32 power iterations, without a vector to remember.
SQUARINGS = 5
SLOPE = 0.2

Layers = list[tuple[Tensor, Tensor]]


class Discriminator(nn.Module):
    """Three layers of spectral norm 1 with leaky ReLU between (Miyato et al., 2018): x_KBI -> logits_KB."""

    def __init__(self, inputs: int, width: int, seeds: Sequence[int], role: str) -> None:
        super().__init__()
        self.first = LaneLinear(inputs, width, seeds, f"{role}.first")
        self.second = LaneLinear(width, width, seeds, f"{role}.second")
        self.last = LaneLinear(width, 1, seeds, f"{role}.last")

    def normalised(self) -> Layers:
        """Return weights and biases, the weights divided by their largest singular value."""
        return [
            (layer.weight_KIO / spectral_norm(layer.weight_KIO)[:, None, None], layer.bias_K1O)
            for layer in (self.first, self.second, self.last)
        ]

    def forward(self, x_KBI: Tensor, layers: Layers) -> Tensor:
        """Return the logits of a batch under :meth:`normalised` layers, or under their detached copy."""
        *hidden, (last_KI1, bias_K11) = layers
        for weight_KIO, bias_K1O in hidden:
            x_KBI = leaky_relu(torch.baddbmm(bias_K1O, x_KBI, weight_KIO), SLOPE)
        return torch.baddbmm(bias_K11, x_KBI, last_KI1)[..., 0]


def spectral_norm(weight_KIO: Tensor) -> Tensor:
    """Return the largest singular value of each lane's matrix [K], from below and within a few per cent.

    The singular vector is held constant in the gradient, as usual. Nothing is remembered between calls, so
    equal weights have equal norms wherever a training is.
    """
    with torch.no_grad():
        gram_KOO = weight_KIO.mT @ weight_KIO
        for _ in range(SQUARINGS):
            scale_K11 = gram_KOO.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
            gram_KOO = (gram_KOO / scale_K11) @ (gram_KOO / scale_K11)
        # A column of the power is near the first singular vector; the one below the largest diagonal entry
        # is never orthogonal to it.
        at_K = gram_KOO.diagonal(dim1=1, dim2=2).argmax(dim=1)
        vector_KO = gram_KOO[torch.arange(len(at_K), device=at_K.device), :, at_K]
        vector_KO = torch.nn.functional.normalize(vector_KO, dim=1)
    stretched_KI = (weight_KIO @ vector_KO[..., None])[..., 0]
    norm_K: Tensor = torch.linalg.vector_norm(stretched_KI, dim=1)
    return norm_K.clamp_min(1e-12)
