"""Losses that tell the pairs of a batch from its other combinations.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmdistill.losses.base import LOSSES, per_lane, unit_rows


@LOSSES.register("infonce")
def infonce(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    negatives_LBB: Tensor | None = None,
) -> Tensor:
    """Return the symmetric in-batch InfoNCE loss between projections; the rows are normalised in here.

    1/2 [CE(sim / tau, diagonal) + CE(sim^T / tau, diagonal)] with cosine similarities (van den Oord et al.,
    2018). log B minus this value is a lower bound of the mutual information, capped at log B.

    Args:
        student_LBD: projected features.
        teacher_LBD: projected features of the same width and samples.
        temperature: tau > 0, one or one per lane.
        negatives_LBB: which combinations count as negatives, symmetric; by default all but the pairs. With
            some left out the bound no longer holds, and a row without any says nothing.
    """
    logits_LBB = _logits(student_LBD, teacher_LBD, temperature)
    pair_LB = logits_LBB.diagonal(dim1=-2, dim2=-1)
    if negatives_LBB is not None:
        logits_LBB = logits_LBB.masked_fill(~(negatives_LBB | _pairs(logits_LBB)), -math.inf)
    either_LB = 0.5 * (logits_LBB.logsumexp(dim=-1) + logits_LBB.logsumexp(dim=-2))
    return (either_LB - pair_LB).mean(dim=-1)


@LOSSES.register("nce")
def nce(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    log_normaliser: float | Tensor = 0.0,
    negatives_LBB: Tensor | None = None,
) -> Tensor:
    """Return the in-batch noise-contrastive loss between projections; the rows are normalised in here.

    -(E_pairs[log h] + N E_negatives[log(1 - h)]) with h = r / (r + N), r = exp(sim / tau) / Z and N negatives
    per pair (CRD, Tian et al., 2020, equations 16 to 19). With scores divided by Z the size of the data set
    drops out of their h = P / (P + N / M), P = r / M. Scores that are not normalised, Z = 1 / M, make a loss
    that hardly tells pairs apart. log N minus this value is a lower bound of the mutual information, any Z.

    Args:
        student_LBD: projected features.
        teacher_LBD: projected features of the same width and samples.
        temperature: tau > 0, one or one per lane.
        log_normaliser: log Z, one or one per lane; see :func:`log_mean_score`.
        negatives_LBB: which combinations count as negatives, symmetric; by default all but the pairs. N is
            then their mean number per row, at least 1. With some left out the bound no longer holds.
    """
    logits_LBB = _logits(student_LBD, teacher_LBD, temperature)
    logits_LBB = logits_LBB - per_lane(log_normaliser, logits_LBB, trailing=2)
    pair_LB = logits_LBB.diagonal(dim1=-2, dim2=-1)
    wanted_LBB = ~_pairs(logits_LBB)
    if negatives_LBB is not None:
        wanted_LBB = wanted_LBB & negatives_LBB
    rows = logits_LBB.shape[-1]
    log_n_L = (wanted_LBB.sum(dim=(-2, -1)) / rows).clamp_min(1.0).log().to(logits_LBB)
    missed_L = softplus(log_n_L[..., None] - pair_LB).mean(dim=-1)
    mistaken_LBB = softplus(logits_LBB - log_n_L[..., None, None])
    return missed_L + torch.where(wanted_LBB, mistaken_LBB, 0.0).sum(dim=(-2, -1)) / rows


def log_mean_score(student_LBD: Tensor, teacher_LBD: Tensor, temperature: float | Tensor) -> Tensor:
    """Return log mean exp(sim / tau) over all combinations of a batch [L]: the Z that CRD keeps for ever."""
    logits_LBB = _logits(student_LBD, teacher_LBD, temperature)
    return logits_LBB.logsumexp(dim=(-2, -1)) - 2 * math.log(logits_LBB.shape[-1])


def _logits(student_LBD: Tensor, teacher_LBD: Tensor, temperature: float | Tensor) -> Tensor:
    cosine_LBB = unit_rows(student_LBD) @ unit_rows(teacher_LBD).mT
    return cosine_LBB / per_lane(temperature, cosine_LBB, trailing=2)


def _pairs(logits_LBB: Tensor) -> Tensor:
    return torch.eye(logits_LBB.shape[-1], dtype=torch.bool, device=logits_LBB.device)
