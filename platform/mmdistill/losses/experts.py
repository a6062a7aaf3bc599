"""Losses that follow several teachers: experts on classes, modalities taken one by one.

Axes: L leading axes (lanes; any number), B batch, C classes, E classes of an expert, M modalities.
"""

from typing import Literal

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.losses.base import known_labels, loss, per_lane, weighted_mean
from mmdistill.losses.softened import divergence, softened_divergence
from mmdistill.softmax import log_softmax

Saliency = Literal["kl", "l1"]
Scope = Literal["sample", "population"]


@loss(
    "lfme",
    source="Xiang, Ding and Han 2020; LFME loss/DistillationLoss.py",
    needs=("logits",),
    tasks="classification",
    temperature=(1.0, 20.0),
)
def lfme(
    student_LBC: Tensor,
    expert_LBE: Tensor,
    *,
    classes_E: Tensor | None = None,
    temperature: float | Tensor = 2.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return KL(softmax(expert / T) || softmax(student's logits of those classes / T)), mean over the batch.

    An expert on a subset of the classes (Xiang, Ding and Han, 2020; LFME `DistillationLoss.py`: the number of
    classes times the mean over B times that number, without T^2). Least, 0, at the expert.

    Args:
        student_LBC: logits over all classes.
        expert_LBE: logits of the expert over its classes, in the order of ``classes_E``.
        classes_E: indices of those classes; all by default.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.

    Raises:
        NumericsError: with fewer than 2 classes, where the divergence is always 0.
    """
    if classes_E is None:
        classes_E = torch.arange(student_LBC.shape[-1])
    if len(classes_E) < 2:
        raise NumericsError(f"`classes_E` must name >= 2 classes, but names {len(classes_E)}")
    T_L11 = per_lane(temperature, student_LBC, trailing=2)
    own_LBE = student_LBC.index_select(-1, classes_E.to(student_LBC.device))
    rows_LB = divergence(log_softmax(expert_LBE / T_L11), log_softmax(own_LBE / T_L11))
    return weighted_mean(rows_LB, row_weights_LB)


def saliency_weights(
    full_LBC: Tensor, without_LMBC: Tensor, *, saliency: Saliency = "kl", scope: Scope = "sample"
) -> Tensor:
    """Return the weights [L, M, B] of the modalities, summing to 1 over them, without gradient.

    The saliency of a modality is how far the teacher's probabilities move when it is left out: KL(with ||
    without) or the sum of absolute differences. Where nothing moves all modalities weigh the same.
    Modality-specific distillation (Jin et al., 2021; formula from memory).

    Args:
        full_LBC: the teacher's logits from all modalities.
        without_LMBC: its logits with one modality left out, for each.
        saliency: which distance.
        scope: whether each sample has weights of its own, or all those of the mean saliency of the batch.
    """
    log_p_L1BC = log_softmax(full_LBC.detach())[..., None, :, :]
    log_q_LMBC = log_softmax(without_LMBC.detach())
    if saliency == "kl":
        saliency_LMB = divergence(log_p_L1BC, log_q_LMBC).clamp_min(0)
    else:
        saliency_LMB = (log_p_L1BC.exp() - log_q_LMBC.exp()).abs().sum(dim=-1)
    if scope == "population":
        saliency_LMB = saliency_LMB.mean(dim=-1, keepdim=True).expand_as(saliency_LMB)
    total_L1B = saliency_LMB.sum(dim=-2, keepdim=True)
    even = 1 / saliency_LMB.shape[-2]
    return torch.where(total_L1B == 0, even, saliency_LMB / torch.where(total_L1B == 0, 1.0, total_L1B))


@loss(
    "msd",
    source="Jin et al. 2021 (modality-specific distillation), first page; formula from memory",
    needs=("logits",),
    tasks="classification",
    temperature=(1.0, 20.0),
)
def msd(
    student_LMBC: Tensor,
    teacher_LMBC: Tensor,
    *,
    weights_LMB: Tensor | None = None,
    temperature: float | Tensor = 4.0,
) -> Tensor:
    """Return sum_m w_m T^2 KL(p_T(x_m) || p_S(x_m)), averaged over the batch; x_m keeps modality m alone.

    Least, 0, at the teacher.

    Args:
        student_LMBC: the student's logits from each modality alone.
        teacher_LMBC: the teacher's.
        weights_LMB: weights, such as :func:`saliency_weights`; 1 / M by default.
        temperature: T > 0, one or one per lane.
    """
    # The lanes stand before the modalities.
    rows_LMB = softened_divergence(student_LMBC, teacher_LMBC, temperature, trailing=3)
    if weights_LMB is None:
        return rows_LMB.mean(dim=(-2, -1))
    return (rows_LMB * weights_LMB).sum(dim=-2).mean(dim=-1)


@loss(
    "samm_target",
    source="Sarfraz et al. 2024 (SAMM); MultiModal-CL models/mmcl.py",
    needs=("logits", "labels"),
    tasks="classification",
)
def samm_target(
    student_LBC: Tensor,
    teachers_LMBC: Tensor,
    labels_LB: Tensor,
    *,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return the squared difference to the logits of the modality surest of the label, mean over C and batch.

    The dynamic target of SAMM (MultiModal-CL `mmcl.py`) without its replay buffer: stored and present logits
    are the same here. Of equally sure modalities the first. Least, 0, at the chosen logits.

    Args:
        student_LBC: logits.
        teachers_LMBC: logits of each modality.
        labels_LB: class indices; any value on rows without weight.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    chosen_LBC = surest_logits(teachers_LMBC, known_labels(labels_LB, row_weights_LB))
    return weighted_mean((student_LBC - chosen_LBC).square().mean(dim=-1), row_weights_LB)


def surest_logits(teachers_LMBC: Tensor, labels_LB: Tensor) -> Tensor:
    """Return the logits [L, B, C] of the modality surest of each label; of equally sure ones the first."""
    log_p_LMBC = log_softmax(teachers_LMBC.detach())
    every_LMB1 = labels_LB[..., None, :, None].expand(*log_p_LMBC.shape[:-1], 1)
    surest_L1B1 = log_p_LMBC.gather(-1, every_LMB1).argmax(dim=-3, keepdim=True)
    return teachers_LMBC.gather(-3, surest_L1B1.expand_as(teachers_LMBC[..., :1, :, :]))[..., 0, :, :]
