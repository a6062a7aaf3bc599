"""Two losses called correlation congruence (Peng et al., 2019).

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from mmdistill.losses.base import loss, per_lane

Kernel = Literal["gaussian", "bilinear"]


@loss("cc", source="Peng et al. 2019; RepDistiller distiller_zoo/CC.py", needs=("features",))
def cc(embedded_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return sum_d |delta_i| |delta_(i+1)| averaged over i < B, delta = student - teacher.

    Correlation congruence as in RepDistiller `CC.py` (which embeds both sides linearly in 128 dimensions).
    It compares neighbours in the batch, so that it depends on the order of the batch. Least, 0, at the
    teacher; a batch of one gives 0 without gradient.

    Args:
        embedded_LBD: the student's features behind the embedding.
        teacher_LBD: the teacher's features behind its own.
    """
    delta_LBD = (embedded_LBD - teacher_LBD).abs()
    neighbours = delta_LBD[..., :-1, :] * delta_LBD[..., 1:, :]
    return neighbours.sum(dim=(-2, -1)) / max(delta_LBD.shape[-2] - 1, 1)


@loss(
    "cckd",
    source="Peng et al. 2019; torchdistill torchdistill/losses/mid_level.py CCKDLoss",
    needs=("features",),
    gamma=(0.01, 2.0),
    order=(1, 5),
)
def cckd(
    embedded_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    kernel: Kernel = "gaussian",
    gamma: float | Tensor = 0.4,
    order: int = 2,
    squared: bool = False,
) -> Tensor:
    """Return ||K(student) - K(teacher)||_F / B^2 between the matrices of correlations within a batch.

    ``bilinear``: K = Z Z^T. ``gaussian``: the Taylor series of the Gaussian kernel of unit vectors,
    exp(-2 gamma) sum_(p <= order) (2 gamma)^p / p! (z_i . z_j)^p. torchdistill `CCKDLoss` with the reduction
    `batchmean`, which takes the norm without the square of the paper. Features are not normalised in here.
    Widths may differ. Least, 0, at the teacher, where the gradient is 0.

    Args:
        embedded_LBD: the student's features behind the embedding.
        teacher_LBD: the teacher's features behind its own.
        kernel: which.
        gamma: > 0, one or one per lane; without effect on ``bilinear``.
        order: last power of the series, >= 1; without effect on ``bilinear``.
        squared: whether to square the norm, as the paper does: the mean squared difference.
    """
    matrices = []
    for z_LBD in (embedded_LBD, teacher_LBD):
        products_LBB = z_LBD @ z_LBD.mT
        matrices.append(products_LBB if kernel == "bilinear" else _taylor(products_LBB, gamma, order))
    difference_LBB = matrices[0] - matrices[1]
    if squared:
        return difference_LBB.square().mean(dim=(-2, -1))
    # Powers of large features fit the number format, their squares may not.
    largest_L11 = difference_LBB.detach().abs().amax(dim=(-2, -1), keepdim=True)
    largest_L11 = torch.where(largest_L11 == 0, 1.0, largest_L11)
    distance_L: Tensor = torch.linalg.vector_norm(difference_LBB / largest_L11, dim=(-2, -1))
    return distance_L * largest_L11[..., 0, 0] / embedded_LBD.shape[-2] ** 2


def _taylor(products_LBB: Tensor, gamma: float | Tensor, order: int) -> Tensor:
    twice_L11 = 2 * per_lane(gamma, products_LBB, trailing=2)
    series_LBB = torch.ones_like(products_LBB)
    for p in range(1, order + 1):
        series_LBB = series_LBB + twice_L11**p / math.factorial(p) * products_LBB**p
    return (-twice_L11).exp() * series_LBB
