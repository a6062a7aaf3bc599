"""Losses between the similarity matrices of two batches, entry by entry.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import torch
from torch import Tensor

from mmdistill.losses.base import loss, unit_rows, unit_scale
from mmdistill.losses.distances import squared_distances

# Bounds of the reference codes: added to lengths and inside logarithms (PKT), to lengths and squared
# distances (IFD). The last only keeps logarithms finite where rounding leaves no similarity.
PKT_EPS = 1e-7
IFD_EPS = 1e-6
LEAST_SHARE = 1e-10


@loss("sp", source="Tung and Mori 2019; RepDistiller distiller_zoo/SP.py", needs=("features",))
def sp(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return ||rows of S S^T to length 1 - rows of T T^T to length 1||_F^2 / B^2.

    Similarity-preserving distillation (Tung and Mori, 2019; RepDistiller `SP.py`). Widths may differ. Least,
    0, at any multiple of the teacher; a sample of zeros has a row of zeros and no gradient.
    """
    difference_LBB = _unit_products(student_LBD) - _unit_products(teacher_LBD)
    return difference_LBB.square().mean(dim=(-2, -1))


def _unit_products(features_LBD: Tensor) -> Tensor:
    # Rows of the products do not depend on the scale of the whole batch.
    scaled_LBD = unit_scale(features_LBD, (-2, -1))
    return unit_rows(scaled_LBD @ scaled_LBD.mT)


@loss(
    "pkt",
    source="Passalis and Tefas 2018; probabilistic_kt nn/pkt.py; RepDistiller distiller_zoo/PKT.py",
    needs=("features",),
)
def pkt(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return p log((p + eps) / (q + eps)), averaged over all B^2 entries.

    p (teacher) and q (student) are the rows of (cosine + 1) / 2 divided by their sums, eps = 1e-7, which the
    cosine's lengths get as well. Probabilistic knowledge transfer (Passalis and Tefas, 2018; RepDistiller
    `PKT.py`). Widths may differ. Least, 0, at the teacher; a sample of zeros has the cosine 0 with all others
    and no gradient.
    """
    q_LBB, p_LBB = (_shares(_cosine_kernel(z_LBD, PKT_EPS)) for z_LBD in (student_LBD, teacher_LBD))
    return (p_LBB * ((p_LBB + PKT_EPS).log() - (q_LBB + PKT_EPS).log())).mean(dim=(-2, -1))


@loss(
    "ifd",
    source="Passalis, Tzelepi and Tefas 2020; pkth nn/pkt_transfer.py prob_loss (combined)",
    needs=("features",),
)
def ifd(student_LBD: Tensor, teacher_LBD: Tensor) -> Tensor:
    """Return (p - q)(log p - log q), averaged over all B^2 entries, summed over two kernels.

    The kernels are (cosine + 1) / 2 and 1 / (1 + distance); p (teacher) and q (student) are their rows
    divided by their sums. One layer of heterogeneous distillation by information flow (Passalis, Tzelepi and
    Tefas, 2020; pkth `prob_loss`, kernels and loss "combined"). Widths may differ. Least, 0, at the teacher.
    A sample of zeros has the cosine 0 with all others and gets no gradient from that kernel.
    """
    total_L = torch.zeros_like(student_LBD[..., 0, 0])
    for kernel in (_cosine_kernel, _student_t_kernel):
        log_q_LBB, log_p_LBB = (
            _shares(kernel(z_LBD, IFD_EPS)).clamp_min(LEAST_SHARE).log()
            for z_LBD in (student_LBD, teacher_LBD)
        )
        jeffreys_LBB = (log_p_LBB.exp() - log_q_LBB.exp()) * (log_p_LBB - log_q_LBB)
        total_L = total_L + jeffreys_LBB.mean(dim=(-2, -1))
    return total_L


def _cosine_kernel(features_LBD: Tensor, eps: float) -> Tensor:
    """Return (x_i . x_j / (|x_i| + eps)(|x_j| + eps) + 1) / 2, in [0, 1]."""
    length_LB1: Tensor = torch.linalg.vector_norm(features_LBD, dim=-1, keepdim=True)
    unit_LBD = features_LBD / (length_LB1 + eps) * (length_LB1 != 0)
    # Rounding may leave less than nothing between opposite samples.
    kernel_LBB: Tensor = (unit_LBD @ unit_LBD.mT + 1.0) / 2.0
    return kernel_LBB.clamp_min(0)


def _student_t_kernel(features_LBD: Tensor, eps: float) -> Tensor:
    """Return 1 / (1 + sqrt(|x_i - x_j|^2 + eps)), in (0, 1)."""
    return 1.0 / (1.0 + (squared_distances(features_LBD) + eps).sqrt())


def _shares(kernel_LBB: Tensor) -> Tensor:
    return kernel_LBB / kernel_LBB.sum(dim=-1, keepdim=True)
