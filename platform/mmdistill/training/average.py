"""A network that is a moving average of others, and is not trained itself.

Axes: K lanes.
"""

import torch
from torch import Tensor, nn

from mmdistill.models.lanes import lane_values
from mmdistill.models.network import Network


class AverageNetwork(nn.Module):
    """Follows, lane by lane, the better of two networks of its own shape; its weights are buffers.

    Of its own past weights it keeps min(momentum, 1 - 1 / step): at the first step it is the better network.
    """

    momentum_K: Tensor
    steps_K: Tensor

    def __init__(self, network: Network, momentum: list[float]) -> None:
        """Take over a network.

        Args:
            network: of the shape of those it will follow; it is no longer trained.
            momentum: the greatest share of itself that a lane keeps at a step.
        """
        super().__init__()
        self.network = network
        for module in network.modules():
            for name, weights_K in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weights_K.detach().clone())
        self.register_buffer("momentum_K", lane_values(momentum, next(network.buffers())))
        self.register_buffer("steps_K", torch.zeros_like(self.momentum_K))

    @torch.no_grad()
    def follow(self, first: Network, second: Network, first_is_better_K: Tensor) -> None:
        """Take a step towards the first network where it is better, else towards the second."""
        self.steps_K += 1
        kept_K = torch.minimum(self.momentum_K, 1 - 1 / self.steps_K)
        firsts, seconds = (dict(network.named_parameters()) for network in (first, second))
        for name, mine_K in self.network.named_buffers():
            share_K, better_K = (x.view(-1, *[1] * (mine_K.ndim - 1)) for x in (kept_K, first_is_better_K))
            theirs_K = torch.where(better_K, firsts[name], seconds[name])
            mine_K.copy_(share_K * mine_K + (1 - share_K) * theirs_K)
