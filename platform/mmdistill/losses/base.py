"""The losses by name, and what they share.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdistill.registry import Registry

LOSSES: Registry[Callable[..., Tensor]] = Registry("loss")

# A row whose largest entry is below this has no direction.
NO_DIRECTION_BELOW = 1e-8


def unit_rows(features_LBD: Tensor) -> Tensor:
    """Return the rows scaled to Euclidean length 1; a row of zeros stays zero and gets no gradient.

    Exact for entries of any magnitude the number format holds: rows are first divided by their largest entry,
    a constant as far as the gradient is concerned because directions do not depend on scale.
    """
    largest_LB1 = features_LBD.detach().abs().amax(dim=-1, keepdim=True)
    has_direction_LB1 = ~(largest_LB1 < NO_DIRECTION_BELOW)
    scaled_LBD = features_LBD / torch.where(has_direction_LB1, largest_LB1, 1.0) * has_direction_LB1
    square_LB1 = scaled_LBD.square().sum(dim=-1, keepdim=True)
    # At least 1 for every row with a direction, so that the bound changes nothing but rows of zeros.
    return scaled_LBD * square_LB1.clamp_min(0.5).rsqrt()


def per_lane(setting: float | Tensor, like_L: Tensor, trailing: int) -> Tensor:
    """Return a setting with ``trailing`` axes of length 1 behind its lanes, in the dtype of ``like_L``."""
    value = torch.as_tensor(setting, dtype=like_L.dtype, device=like_L.device)
    return value[(..., *[None] * trailing)]


def weighted_mean(values_LB: Tensor, weights_LB: Tensor | None) -> Tensor:
    """Return the mean over the batch, weighted if there are weights >= 0; 0 where no weight is above 0.

    A row of weight 0 has no influence and no gradient, even if its value is not finite.
    """
    if weights_LB is None:
        return values_LB.mean(dim=-1)
    weights_LB = weights_LB.to(values_LB.dtype)
    counted_LB = torch.where(weights_LB > 0, values_LB, 0.0) * weights_LB
    total_L = weights_LB.sum(dim=-1)
    return counted_LB.sum(dim=-1) / torch.where(total_L > 0, total_L, 1.0)
