"""Euclidean distances within a batch, with gradients that stay finite where rows are equal.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import torch
from torch import Tensor


def squared_distances(features_LBD: Tensor) -> Tensor:
    """Return ||x_i - x_j||^2 [L, B, B], >= 0, exactly 0 on the diagonal."""
    # Distances do not depend on the origin, and near it less is lost to rounding.
    centred_LBD = features_LBD - features_LBD.detach().mean(dim=-2, keepdim=True)
    square_LB = centred_LBD.square().sum(dim=-1)
    products_LBB = centred_LBD @ centred_LBD.mT
    distances_LBB = square_LB[..., :, None] + square_LB[..., None, :] - 2 * products_LBB
    return distances_LBB.clamp_min(0) * off_diagonal(features_LBD)


def off_diagonal(features_LBD: Tensor) -> Tensor:
    """Return a matrix [B, B] of ones with zeros on the diagonal, in the dtype of the features."""
    batch = features_LBD.shape[-2]
    return 1 - torch.eye(batch, dtype=features_LBD.dtype, device=features_LBD.device)


def distances(features_LBD: Tensor, *, floor: float = 1e-12) -> Tensor:
    """Return ||x_i - x_j|| [L, B, B], >= sqrt(floor) even on the diagonal; no gradient below that."""
    return squared_distances(features_LBD).clamp_min(floor).sqrt()
