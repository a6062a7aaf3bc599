"""What a network costs to run: parameters, multiply-accumulates, latency."""

import statistics
import time

import torch
from torch import nn

from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Network


def parameters_per_lane(network: nn.Module) -> int:
    """Return the number of trainable numbers of one lane."""
    return sum(parameter.numel() // parameter.shape[0] for parameter in network.parameters())


def multiply_accumulates(network: nn.Module) -> int:
    """Return the multiply-accumulates of the affine maps for one sample; activations are not counted."""
    layers = (module for module in network.modules() if isinstance(module, LaneLinear))
    return sum(layer.weight_KIO[0].numel() for layer in layers)


def latency_ms(network: Network, widths: dict[str, int], repeats: int = 30) -> float:
    """Return the median milliseconds of one forward pass of one sample through one lane, on CPU."""
    sample = {name: torch.zeros(1, 1, widths[name]) for name in network.modalities}
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            network(sample)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
