"""Losses that tell pairs from noise, with a normaliser for their scores.

Axes: L leading axes (lanes; any number), B batch, D width, N one positive and the negatives (1 + K).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmdistill.losses.base import loss, per_lane, unit_rows
from mmdistill.losses.contrastive import same_class

# Added to the share of noise, as in the reference code.
CRD_EPS = 1e-7


@loss(
    "nce",
    source="AMID (Chen et al. 2023), critic inferred: CRD (Tian, Krishnan and Isola 2020, equation 11)",
    needs=("features",),
    temperature=(0.02, 1.0),
    n_data=(1e2, 1e7),
    Z=(1.0, 1e12),
)
def nce(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    n_data: float | Tensor | None = None,
    Z: float | Tensor | None = None,
    temperature: float | Tensor = 0.07,
    labels_LB: Tensor | None = None,
) -> Tensor:
    """Return -(E_pos log h + N E_neg log(1 - h)) in the batch; the rows are normalised in here.

    h = P / (P + N / M) with P = exp(cos / tau) / Z, N = B - 1 negatives of each sample and M = n_data: the
    sum over the negatives of a sample, averaged over the batch. Both directions are the same pairs, hence
    counted once. Without its normaliser (Z = 1) the loss is nearly constant: take :func:`normaliser` of the
    first batch and keep it. A batch of one gives 0.

    Args:
        student_LBD: projected features.
        teacher_LBD: projected features of the same width and samples.
        n_data: M > 0, size of the data set, one or one per lane; B by default.
        Z: normaliser > 0, one or one per lane; by default that of this batch.
        temperature: tau > 0, one or one per lane.
        labels_LB: classes whose other members are left out of the negatives (N stays); none by default.
    """
    cosine_LBB = unit_rows(student_LBD) @ unit_rows(teacher_LBD).mT
    batch = cosine_LBB.shape[-1]
    n_data = batch if n_data is None else n_data
    Z = normaliser(cosine_LBB, n_data=n_data, temperature=temperature) if Z is None else Z
    log_P_LBB = _log_scores(cosine_LBB, temperature, Z)
    itself_BB = torch.eye(batch, dtype=torch.bool, device=cosine_LBB.device)
    skipped_LBB = itself_BB if labels_LB is None else itself_BB | same_class(labels_LB)
    # The share of noise of one negative stands in for none: a batch of one has nothing to tell apart.
    log_noise_L11 = (max(batch - 1, 1) / per_lane(n_data, cosine_LBB, trailing=2)).log()
    margin_LBB = log_P_LBB - log_noise_L11
    hit_LB = logsigmoid(margin_LBB.diagonal(dim1=-2, dim2=-1)) * min(batch - 1, 1)
    miss_LB = (logsigmoid(-margin_LBB) * ~skipped_LBB).sum(dim=-1)
    return -(hit_LB + miss_LB).mean(dim=-1)


def normaliser(similarities_LBN: Tensor, *, n_data: float | Tensor, temperature: float | Tensor) -> Tensor:
    """Return CRD's Z [L] = n_data times the mean of exp(similarity / tau), without gradient.

    RepDistiller `crd/memory.py` takes it from the first batch and keeps it.
    """
    tau_L11 = per_lane(temperature, similarities_LBN, trailing=2)
    mean_L = (similarities_LBN.detach() / tau_L11).exp().mean(dim=(-2, -1))
    return mean_L * per_lane(n_data, mean_L, trailing=0)


def _log_scores(similarities_LBN: Tensor, temperature: float | Tensor, Z: float | Tensor) -> Tensor:
    tau_L11 = per_lane(temperature, similarities_LBN, trailing=2)
    return similarities_LBN / tau_L11 - per_lane(Z, similarities_LBN, trailing=2).log()


@loss(
    "crd",
    source="Tian, Krishnan and Isola 2020; RepDistiller crd/criterion.py, crd/memory.py",
    needs=("features",),
    temperature=(0.02, 1.0),
    n_data=(1e2, 1e7),
    Z=(1.0, 1e12),
)
def crd(
    student_LBD: Tensor,
    contrasts_LBND: Tensor,
    *,
    n_data: float | Tensor,
    Z: float | Tensor,
    temperature: float | Tensor = 0.07,
) -> Tensor:
    """Return CRD's contrast between a network's projections and rows of the other's memory bank.

    :func:`crd_contrast` of the scores exp(v . m / tau) / Z. One of two directions: the whole loss adds the
    teacher's projections against the student's bank. Nothing is normalised in here: the projections and the
    bank hold rows of length 1. The bank remembers the batches before, so that the whole method depends on
    their order; this function does not. No least value at the teacher.

    Args:
        student_LBD: projections of length 1.
        contrasts_LBND: for each sample its own row of the bank first, then K of others.
        n_data: M > 0, rows of the bank, one or one per lane.
        Z: > 0, one or one per lane, see :func:`normaliser`.
        temperature: tau > 0, one or one per lane.
    """
    similarities_LBN = (contrasts_LBND @ student_LBD[..., None])[..., 0]
    return _contrast(_log_scores(similarities_LBN, temperature, Z), n_data)


@loss(
    "crd_contrast",
    source="Tian, Krishnan and Isola 2020; RepDistiller crd/criterion.py ContrastLoss",
    needs=("features",),
    n_data=(1e2, 1e7),
)
def crd_contrast(scores_LBN: Tensor, *, n_data: float | Tensor) -> Tensor:
    """Return -[log P_0 / (P_0 + c + eps) + sum_k log c / (P_k + c + eps)], averaged over the batch.

    c = K / n_data, eps = 1e-7, from scores P of one positive (first) and K negatives (RepDistiller
    `ContrastLoss`).

    Args:
        scores_LBN: > 0.
        n_data: > 0, one or one per lane.
    """
    return _contrast(scores_LBN.log(), n_data)


def _contrast(log_scores_LBN: Tensor, n_data: float | Tensor) -> Tensor:
    negatives = log_scores_LBN.shape[-1] - 1
    noise_L11 = negatives / per_lane(n_data, log_scores_LBN, trailing=2)
    log_share_L11 = (noise_L11 + CRD_EPS).log()
    margin_LBN = log_scores_LBN - log_share_L11
    miss_LBK = logsigmoid(-margin_LBN[..., 1:]) + (noise_L11.log() - log_share_L11)
    return -(logsigmoid(margin_LBN[..., 0]) + miss_LBK.sum(dim=-1)).mean(dim=-1)
