"""Losses between the distributions of two sets of features.

Axes: L leading axes (lanes; any number), B batch, D width, N both batches (2B).
"""

import torch
from torch import Tensor

from mmdistill.losses.base import loss, per_lane
from mmdistill.losses.distances import squared_distances


@loss(
    "mmd",
    source="Long et al. 2015; MT-PKDOT mmd_loss.py",
    needs=("features",),
    ratio=(1.5, 4.0),
    kernels=(1, 9),
)
def mmd(student_LBD: Tensor, teacher_LBD: Tensor, *, ratio: float | Tensor = 2.0, kernels: int = 5) -> Tensor:
    """Return mean(K_SS + K_TT - K_ST - K_TS) over B^2 entries, K a sum of Gaussian kernels.

    K = sum_i exp(-||x - y||^2 / h_i), h_i = h ratio^i / ratio^(kernels // 2), h = mean squared distance
    between two different rows of both sets, a constant as far as the gradient is concerned (MT-PKDOT
    `mmd_loss.py`). Pairs of samples play no part, only the two sets. Least, 0, at equal sets; 0 without
    gradient if all rows are equal.

    Args:
        student_LBD: features.
        teacher_LBD: as many features of the same width.
        ratio: between one kernel's width and the next, > 1, one or one per lane.
        kernels: how many, >= 1.
    """
    distances_LNN = squared_distances(torch.cat([student_LBD, teacher_LBD], dim=-2))
    batch, rows = student_LBD.shape[-2], distances_LNN.shape[-1]
    mean_L11 = distances_LNN.detach().sum(dim=(-2, -1), keepdim=True) / (rows * rows - rows)
    ratio_L11 = per_lane(ratio, distances_LNN, trailing=2)
    scaled_LNN = distances_LNN / torch.where(mean_L11 > 0, mean_L11, 1.0)
    K_LNN = torch.zeros_like(scaled_LNN)
    for i in range(kernels):
        K_LNN = K_LNN + (-scaled_LNN / ratio_L11 ** (i - kernels // 2)).exp()
    same_L = (K_LNN[..., :batch, :batch] + K_LNN[..., batch:, batch:]).mean(dim=(-2, -1))
    return same_L - 2 * K_LNN[..., :batch, batch:].mean(dim=(-2, -1))
